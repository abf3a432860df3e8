// The C++ layer: every operation in every form, every element type, owners, errors, the default
// world. What an operation does to data is the C tests' matter; here it is that the right one is
// called with the right arguments.
#include "check.h"
#include "mlxd.hpp"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <list>
#include <numeric>
#include <thread>
#if __cplusplus >= 202002L
#include <span>
#endif

namespace {

using mlxd::Span;
using mlxd::Status;
using Floats = std::vector<float>;
using Ints = std::vector<int>;

int rank, size;
std::size_t ranks; // the size, for counts

// The status that a call throws; ok if it returns.
template <class Call> Status thrown(Call call) {
    try {
        call();
        return Status::ok;
    } catch (const mlxd::Error &error) {
        CHECK(error.what()[0] != '\0');
        return error.status();
    }
}

#define CHECK_THROWS(call, want) CHECK(thrown([&] { call; }) == Status::want)

// 1 + 2 + ... + size times `factor`: the sum of (rank + 1) * factor.
int sum_of_ranks(int factor) {
    return size * (size + 1) / 2 * factor;
}

// ---- What needs no run --------------------------------------------------------------------------

template <class T> constexpr bool is(mlxd_dtype want) {
    return mlxd::dtype<T> == want && mlxd::dtype<const T> == want;
}

static_assert(is<bool>(MLXD_BOOL) && is<std::byte>(MLXD_UINT8));
static_assert(is<char>(std::numeric_limits<char>::is_signed ? MLXD_INT8 : MLXD_UINT8));
static_assert(is<signed char>(MLXD_INT8) && is<unsigned char>(MLXD_UINT8));
static_assert(is<std::int8_t>(MLXD_INT8) && is<std::uint8_t>(MLXD_UINT8));
static_assert(is<short>(MLXD_INT16) && is<unsigned short>(MLXD_UINT16));
static_assert(is<int>(MLXD_INT32) && is<unsigned>(MLXD_UINT32));
static_assert(is<long>(sizeof(long) == 8 ? MLXD_INT64 : MLXD_INT32));
static_assert(is<unsigned long>(sizeof(long) == 8 ? MLXD_UINT64 : MLXD_UINT32));
static_assert(is<long long>(MLXD_INT64) && is<unsigned long long>(MLXD_UINT64));
static_assert(is<mlxd::float16>(MLXD_FLOAT16) && is<mlxd::bfloat16>(MLXD_BFLOAT16));
static_assert(is<float>(MLXD_FLOAT32) && is<double>(MLXD_FLOAT64));
static_assert(is<std::complex<float>>(MLXD_COMPLEX64));
static_assert(sizeof(mlxd::float16) == 2 && sizeof(mlxd::bfloat16) == 2);
static_assert(!mlxd::detail::IsElement<long double>::value);
static_assert(!mlxd::detail::IsElement<std::complex<double>>::value);
static_assert(!mlxd::detail::IsElement<int *>::value);

template <class T>
constexpr bool moves_only =
    !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T> &&
    std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T>;
static_assert(moves_only<mlxd::Group> && moves_only<mlxd::Stream> && moves_only<mlxd::Options>);
static_assert(std::is_nothrow_copy_constructible_v<mlxd::Error>);
static_assert(std::is_base_of_v<std::exception, mlxd::Error>);

// A view of constants may be made from what is not, never the other way round.
static_assert(std::is_convertible_v<Floats &, Span<float>>);
static_assert(std::is_convertible_v<const Floats &, Span<const float>>);
static_assert(std::is_convertible_v<Floats &, Span<const float>>);
static_assert(std::is_convertible_v<Span<float>, Span<const float>>);
static_assert(std::is_convertible_v<std::array<int, 3> &, Span<int>>);
static_assert(std::is_convertible_v<int (&)[3], Span<int>>);
static_assert(!std::is_convertible_v<const Floats &, Span<float>>);
static_assert(!std::is_convertible_v<Span<const float>, Span<float>>);
static_assert(!std::is_convertible_v<Floats &, Span<double>>);
static_assert(!std::is_convertible_v<std::list<float> &, Span<float>>);
#if __cplusplus >= 202002L
static_assert(std::is_convertible_v<std::span<float>, Span<float>>);
static_assert(std::is_convertible_v<std::span<float, 4>, Span<const float>>);
static_assert(!std::is_convertible_v<std::span<const float>, Span<float>>);
#endif

void check_span() {
    Ints numbers{1, 2, 3, 4};
    const Span all(numbers);
    static_assert(std::is_same_v<decltype(all), const Span<int>>);
    CHECK(all.data() == numbers.data() && all.size() == 4 && !all.empty() && all[2] == 3);
    CHECK(std::accumulate(all.begin(), all.end(), 0) == 10);
    const Span<const int> middle = all.subspan(1, 2);
    CHECK(middle.size() == 2 && middle[0] == 2);
    CHECK(Span<int>().empty() && Span<int>().data() == nullptr);
    double plain[3] = {};
    CHECK(Span(plain).size() == 3 && Span(plain, 2).size() == 2);
    const std::string text = "text";
    static_assert(std::is_same_v<decltype(Span(text)), Span<const char>>);
    CHECK(Span(text).size() == 4);
}

// ---- Operations ---------------------------------------------------------------------------------

// Each form of a reduction: f is all_sum, all_max or all_min, `want` what it makes of rank + 1.
template <class F> void check_reduction(const mlxd::Group &world, F f, int want) {
    const int mine = rank + 1;
    const Ints input{mine, 10 * mine, 100 * mine};
    const Ints output{want, 10 * want, 100 * want};
    const std::array<int, 3> fixed{mine, 10 * mine, 100 * mine};

    // memory
    Ints got(3);
    f(input.data(), got.data(), 2, world);
    CHECK((got == Ints{want, 10 * want, 0}));
    got = input;
    f(got.data(), got.data(), got.size(), world);
    CHECK(got == output);

    // two ranges, of the same kind or not
    got.assign(3, 0);
    f(input, got, world);
    CHECK(got == output);
    int plain[3] = {};
    f(fixed, plain, world);
    CHECK(std::equal(output.begin(), output.end(), plain));
    f(input, Span(plain), world);
    CHECK(std::equal(output.begin(), output.end(), plain));
    got = input;
    f(got, got, world);
    CHECK(got == output);

    // a view alone
    got = input;
    f(Span(got), world);
    CHECK(got == output);

    // values
    CHECK(f(input, world) == output);
    CHECK(f(mine, world) == want);
    CHECK((f(fixed, world) == std::array<int, 3>{want, 10 * want, 100 * want}));

    // over the default world
    CHECK(f(mine) == want);
    CHECK(f(input) == output);
    got = input;
    f(Span(got));
    CHECK(got == output);
    f(input, got);
    CHECK(got == output);

    // on a stream
    mlxd::Stream stream;
    Ints first(3), second = input, third(3);
    f(input, first, world, stream);
    f(Span(second), world, stream);
    f(input.data(), third.data(), third.size(), mlxd::GroupRef(), stream);
    stream.synchronize();
    CHECK(first == output && second == output && third == output);

    // nothing
    CHECK(f(Ints{}, world).empty());
    f(Span<int>(), world);

    // what does not fit
    Ints small(2);
    CHECK_THROWS(f(input, small, world), invalid_argument);
    CHECK_THROWS(f(small, Span(got), world, stream), invalid_argument);
}

void check_reductions(const mlxd::Group &world) {
    const auto sum = [](auto &&...arguments) {
        return mlxd::all_sum(std::forward<decltype(arguments)>(arguments)...);
    };
    const auto max = [](auto &&...arguments) {
        return mlxd::all_max(std::forward<decltype(arguments)>(arguments)...);
    };
    const auto min = [](auto &&...arguments) {
        return mlxd::all_min(std::forward<decltype(arguments)>(arguments)...);
    };
    check_reduction(world, sum, sum_of_ranks(1));
    check_reduction(world, max, size);
    check_reduction(world, min, 1);
}

void check_all_gather(const mlxd::Group &world) {
    const Ints input{rank, -rank};
    Ints want;
    for (int from = 0; from < size; ++from) {
        want.insert(want.end(), {from, -from});
    }

    Ints got(2 * ranks);
    mlxd::all_gather(input.data(), got.data(), 2, world);
    CHECK(got == want);
    got.assign(2 * ranks, 7);
    mlxd::all_gather(input, got);
    CHECK(got == want);

    // in place: this rank's block is there, the others come
    got.assign(2 * ranks, 7);
    const Span mine = Span(got).subspan(2 * static_cast<std::size_t>(rank), 2);
    std::copy(input.begin(), input.end(), mine.begin());
    mlxd::all_gather(Span(got), world);
    CHECK(got == want);
    mlxd::all_gather(mine, got, world);
    CHECK(got == want);

    CHECK(mlxd::all_gather(input, world) == want);
    CHECK((mlxd::all_gather(std::array<int, 2>{rank, -rank}) == want));
    const Ints numbers = mlxd::all_gather(rank, world);
    Ints ascending(ranks);
    std::iota(ascending.begin(), ascending.end(), 0);
    CHECK(numbers == ascending);

    mlxd::Stream stream;
    got.assign(2 * ranks, 7);
    mlxd::all_gather(input, got, world, stream);
    stream.synchronize();
    CHECK(got == want);

    Ints wrong(2 * ranks + 1);
    CHECK_THROWS(mlxd::all_gather(input, wrong, world), invalid_argument);
    if (size > 1) {
        CHECK_THROWS(mlxd::all_gather(Span(wrong), world), invalid_argument);
    }
}

void check_sum_scatter(const mlxd::Group &world) {
    // element i of every rank: (rank + 1) * i
    Ints input(3 * ranks), want(3);
    for (std::size_t i = 0; i < input.size(); ++i) {
        input[i] = (rank + 1) * static_cast<int>(i);
    }
    for (int i = 0; i < 3; ++i) {
        want[static_cast<std::size_t>(i)] = sum_of_ranks(3 * rank + i);
    }

    Ints got(3);
    mlxd::sum_scatter(input.data(), got.data(), input.size(), world);
    CHECK(got == want);
    got.assign(3, -1);
    mlxd::sum_scatter(input, got);
    CHECK(got == want);

    Ints copy = input;
    const Span<int> mine = mlxd::sum_scatter(Span(copy), world);
    CHECK(mine.data() == copy.data() + 3 * rank && mine.size() == 3);
    CHECK(std::equal(want.begin(), want.end(), mine.begin()));

    CHECK(mlxd::sum_scatter(input, world) == want);

    mlxd::Stream stream;
    got.assign(3, -1);
    mlxd::sum_scatter(input, got, world, stream);
    stream.synchronize();
    CHECK(got == want);

    Ints wrong(4);
    CHECK_THROWS(mlxd::sum_scatter(input, wrong, world), invalid_argument);
    if (size > 1) {
        wrong.resize(ranks + 1);
        CHECK_THROWS((void)mlxd::sum_scatter(wrong, world), invalid_argument);
        CHECK_THROWS(mlxd::sum_scatter(Span(wrong), world), invalid_argument);
    }
}

void check_all_to_all(const mlxd::Group &world) {
    // block j of rank i: {i, j}
    Ints input, want;
    for (int other = 0; other < size; ++other) {
        input.insert(input.end(), {rank, other});
        want.insert(want.end(), {other, rank});
    }
    Ints got(input.size());
    mlxd::all_to_all(input.data(), got.data(), input.size(), world);
    CHECK(got == want);
    got.assign(input.size(), -1);
    mlxd::all_to_all(input, got);
    CHECK(got == want);
    CHECK(mlxd::all_to_all(input, world) == want);

    mlxd::Stream stream;
    got.assign(input.size(), -1);
    mlxd::all_to_all(input, got, world, stream);
    stream.synchronize();
    CHECK(got == want);

    CHECK_THROWS(mlxd::all_to_all(got, got, world), invalid_argument); // the library's own word
    got.pop_back();
    CHECK_THROWS(mlxd::all_to_all(input, got, world), invalid_argument);
}

void check_broadcast(const mlxd::Group &world) {
    const int root = size - 1;
    double values[3] = {1.0 * rank, 2.0 * rank, 3.0 * rank};
    mlxd::broadcast(values, root, world);
    CHECK(values[0] == root && values[2] == 3 * root);
    Floats vector(5, static_cast<float>(rank));
    mlxd::broadcast(vector.data(), 4, root, world);
    CHECK(vector[3] == static_cast<float>(root) && vector[4] == static_cast<float>(rank));
    mlxd::broadcast(Span(vector), 0);
    CHECK(vector == Floats({static_cast<float>(root), static_cast<float>(root),
                            static_cast<float>(root), static_cast<float>(root), 0}));
    unsigned long long seed = static_cast<unsigned long long>(rank) + (1ULL << 40);
    mlxd::broadcast(seed, root);
    CHECK(seed == static_cast<unsigned long long>(root) + (1ULL << 40));

    mlxd::Stream stream;
    std::array<bool, 2> flags{rank == root, rank != root};
    mlxd::broadcast(flags, root, world, stream);
    stream.synchronize();
    CHECK(flags[0] && !flags[1]);

    CHECK_THROWS(mlxd::broadcast(values, size, world), invalid_argument);
    CHECK_THROWS(mlxd::broadcast(values, -1), invalid_argument);
}

// Every rank sends to the next and receives from the one before; even ranks send first.
template <class Send, class Receive> void ring_shift(Send send, Receive receive) {
    const int to = (rank + 1) % size, from = (rank + size - 1) % size;
    if (rank % 2 == 0) {
        send(to);
        receive(from);
    } else {
        receive(from);
        send(to);
    }
}

void check_messages(const mlxd::Group &world) {
    Floats vector{static_cast<float>(rank), 0.5F};
    if (size == 1) { // there is nobody to talk to
        CHECK_THROWS(mlxd::send(vector, 0, world), invalid_argument);
        CHECK_THROWS(mlxd::recv(vector, 0, world), invalid_argument);
        CHECK_THROWS((void)mlxd::recv<float>(3, 0), invalid_argument);
        CHECK_THROWS((void)mlxd::recv_like(vector, 0), invalid_argument);
        return;
    }
    const auto want = [](int from) { return Floats{static_cast<float>(from), 0.5F}; };
    Floats got(2);
    ring_shift([&](int to) { mlxd::send(vector.data(), 2, to, world); },
               [&](int from) {
                   mlxd::recv(got.data(), 2, from, world);
                   CHECK(got == want(from));
               });
    ring_shift([&](int to) { mlxd::send(vector, to); },
               [&](int from) {
                   float plain[2] = {};
                   mlxd::recv(plain, from);
                   CHECK(plain[0] == static_cast<float>(from) && plain[1] == 0.5F);
               });
    ring_shift([&](int to) { mlxd::send(vector, to, world); },
               [&](int from) { CHECK(mlxd::recv<float>(2, from, world) == want(from)); });
    ring_shift([&](int to) { mlxd::send(vector, to, world); },
               [&](int from) { CHECK(mlxd::recv_like(vector, from) == want(from)); });
    ring_shift([&](int to) { mlxd::send(rank, to, world); },
               [&](int from) { CHECK(mlxd::recv_like(0, from, world) == from); });
    ring_shift([&](int to) { mlxd::send(std::string("hello"), to, world); },
               [&](int from) {
                   std::string text(5, ' ');
                   mlxd::recv(text, from, world);
                   CHECK(text == "hello");
               });

    // A stream for each direction: the two go on beside each other.
    const int to = (rank + 1) % size, from = (rank + size - 1) % size;
    mlxd::Stream sends, receives;
    got.assign(2, -1.0F);
    mlxd::send(vector, to, world, sends);
    mlxd::recv(got, from, world, receives);
    sends.synchronize();
    receives.synchronize();
    CHECK(got == want(from));

    // Both at once, of different sizes: rank r sends r + 1 elements.
    const Ints input(static_cast<std::size_t>(rank) + 1, rank);
    Ints output(static_cast<std::size_t>(from) + 1);
    mlxd::send_recv(input, to, output, from, world);
    CHECK(output == Ints(output.size(), from));
    output.assign(output.size(), -1);
    mlxd::send_recv(input.data(), input.size(), to, output.data(), output.size(), from);
    CHECK(output == Ints(output.size(), from));
    output.assign(output.size(), -1);
    mlxd::send_recv(input, to, Span(output), from, {}, sends);
    sends.synchronize();
    CHECK(output == Ints(output.size(), from));

    CHECK_THROWS(mlxd::send(vector, size, world), invalid_argument);
    CHECK_THROWS(mlxd::recv(vector, rank, world), invalid_argument);
}

template <class T> T number(int value) {
    if constexpr (std::is_same_v<T, std::complex<float>>) {
        return static_cast<float>(value);
    } else {
        return static_cast<T>(value);
    }
}

template <class T> void check_type(const mlxd::Group &world) {
    const std::array<T, 3> input{number<T>(1), number<T>(0), number<T>(rank + 1)};
    const std::array<T, 3> want{number<T>(size), number<T>(0), number<T>(sum_of_ranks(1))};
    CHECK(mlxd::all_sum(input, world) == want);
    std::array<T, 3> got{};
    mlxd::all_max(input, got, world);
    CHECK(got[2] == number<T>(size));
}

template <class Half> void check_bits(const mlxd::Group &world, std::uint16_t two) {
    Half buffer[1] = {{two}};
    mlxd::all_max(Span(buffer), world);
    CHECK(buffer[0].bits == two);
    mlxd::all_sum(buffer, buffer, world);
    CHECK(size != 2 || buffer[0].bits > two); // 4: the next exponent
    CHECK(size != 1 || buffer[0].bits == two);
}

void check_types(const mlxd::Group &world) {
    check_type<char>(world);
    check_type<signed char>(world);
    check_type<unsigned char>(world);
    check_type<short>(world);
    check_type<unsigned short>(world);
    check_type<int>(world);
    check_type<unsigned>(world);
    check_type<long>(world);
    check_type<unsigned long>(world);
    check_type<long long>(world);
    check_type<unsigned long long>(world);
    check_type<float>(world);
    check_type<double>(world);
    check_type<std::complex<float>>(world);
    check_bits<mlxd::float16>(world, 0x4000);
    check_bits<mlxd::bfloat16>(world, 0x4000);
#if defined(__FLT16_MANT_DIG__) && defined(__SSE2__)
    __extension__ typedef _Float16 Half;
    static_assert(is<Half>(MLXD_FLOAT16));
    check_type<Half>(world);
#endif
#ifdef __BFLT16_MANT_DIG__
    __extension__ typedef __bf16 Brain;
    static_assert(is<Brain>(MLXD_BFLOAT16));
    check_type<Brain>(world);
#endif

    CHECK(mlxd::all_sum(rank == 0, world)); // or
    CHECK(mlxd::all_min(rank == 0, world) == (size == 1));
    const std::byte bytes[2] = {std::byte{0x80}, std::byte{1}};
    std::byte gathered[128];
    REQUIRE(2 * ranks <= sizeof gathered);
    mlxd::all_gather(bytes, Span(gathered, 2 * ranks), world);
    CHECK(gathered[2 * ranks - 2] == std::byte{0x80});
    const std::complex<float> turn{static_cast<float>(rank), -1.0F};
    CHECK((mlxd::all_sum(turn, world) ==
           std::complex<float>{static_cast<float>(sum_of_ranks(1) - size),
                               static_cast<float>(-size)}));
}

#if __cplusplus >= 202002L
void check_std_span(const mlxd::Group &world) {
    Ints values(4, rank + 1);
    const std::span<int> view(values);
    mlxd::all_sum(view, view, world);
    CHECK(values == Ints(4, sum_of_ranks(1)));
    mlxd::all_min(std::span<const int>(view.first<2>()), view.last<2>(), world);
    mlxd::broadcast(view.subspan(1), 0, world);
    mlxd::all_sum(Span(view), world);
    CHECK(values == Ints(4, sum_of_ranks(size)));
}
#endif

// ---- Groups, streams, options -------------------------------------------------------------------

void check_split(const mlxd::Group &world) {
    const mlxd::Group half = world.split(rank % 2);
    CHECK(half.rank() == rank / 2 && half.size() == (size + 1 - rank % 2) / 2);
    CHECK(half.backend() == world.backend() && half.status() == Status::ok);
    CHECK(mlxd::all_sum(1, half) == half.size());
    const mlxd::Group reversed = world.split(0, size - rank);
    CHECK(reversed.rank() == size - 1 - rank && reversed.size() == size);

    // colour -1: an empty group, which takes part in nothing
    const mlxd::Group rest = world.split(rank == 0 ? -1 : 3);
    CHECK(bool(rest) == (rank != 0));
    if (rank != 0) {
        CHECK(rest.size() == size - 1);
    } else {
        CHECK(rest.native() == nullptr && rest.status() == Status::invalid_argument);
        CHECK_THROWS((void)rest.rank(), invalid_argument);
        CHECK_THROWS((void)rest.size(), invalid_argument);
        CHECK_THROWS((void)rest.backend(), invalid_argument);
        CHECK_THROWS((void)rest.split(0), invalid_argument);
        CHECK_THROWS(rest.abort(), invalid_argument);
        CHECK_THROWS(rest.dump("file"), invalid_argument);
        CHECK_THROWS(rest.set_timeout(std::chrono::seconds(1)), invalid_argument);
        CHECK_THROWS((void)mlxd::all_sum(1, rest), invalid_argument);
        CHECK_THROWS((void)mlxd::all_gather(1, rest), invalid_argument);
        CHECK_THROWS(mlxd::barrier(rest), invalid_argument);
    }
    CHECK_THROWS((void)world.split(-2), invalid_argument);
    mlxd::barrier(world);
}

void check_owners(mlxd::Group &world) {
    // Moves hand the world on and leave nothing behind.
    mlxd_group *handle = world.native();
    mlxd::Group other = std::move(world);
    CHECK(!world && other.native() == handle); // NOLINT(bugprone-use-after-move)
    world = std::move(other);
    CHECK(world && world.native() == handle);
    mlxd::Group adopted = mlxd::Group::adopt(world.release());
    CHECK(!world && adopted.rank() == rank);
    world = std::move(adopted);
    mlxd::Group part = world.split(0);
    part = world.split(rank % 2); // frees the first
    part = mlxd::Group();         // and the second
    CHECK(!part);
    CHECK(mlxd::Group::adopt(nullptr).native() == nullptr);

    // Two handles of one world.
    {
        const mlxd::Group again = mlxd::init();
        CHECK(again.native() != world.native() && again.rank() == rank);
        CHECK(mlxd::all_sum(1, again) == size);
    }
    CHECK(mlxd::all_sum(1, world) == size);

    mlxd::Stream stream;
    Ints values(1000, 1);
    mlxd::all_sum(Span(values), world, stream);
    mlxd::Stream moved = std::move(stream);
    CHECK_THROWS(stream.synchronize(), invalid_argument); // NOLINT(bugprone-use-after-move)
    CHECK_THROWS(mlxd::all_sum(Span(values), world, stream), invalid_argument);
    moved.synchronize();
    CHECK(values == Ints(1000, size));
    const mlxd::Stream back = mlxd::Stream::adopt(moved.release());
    CHECK(moved.native() == nullptr);
    back.synchronize();
    CHECK_THROWS((void)mlxd::Stream::from_cuda(nullptr), unavailable);

    // A stream that goes away has done its work; its group may go before.
    Ints late(100000, 1);
    {
        const mlxd::Stream short_lived;
        const mlxd::Group also = world.split(0);
        mlxd::all_sum(late, late, also, short_lived);
        mlxd::barrier(also, short_lived);
    }
    CHECK(late == Ints(late.size(), size));
}

void check_threads(const mlxd::Group &world) {
    // Two threads, each with a group of its own.
    const mlxd::Group left = world.split(0), right = world.split(0);
    std::thread beside([&] {
        for (int round = 0; round < 20; ++round) {
            CHECK(mlxd::all_sum(round, left) == round * size);
        }
    });
    for (int round = 0; round < 20; ++round) {
        CHECK(mlxd::all_max(round + rank, right) == round + size - 1);
    }
    beside.join();
}

void check_options(const mlxd::Group &world) {
    // A second world, whose ranks find each other through the first.
    mlxd::Options options;
    options.set("MLXD_RANK", std::to_string(rank))
        .set("MLXD_WORLD_SIZE", std::to_string(size))
        .set_all_gather([](const void *, void *, std::size_t) { REQUIRE(!"replaced below"); })
        .set_all_gather([&world](const void *src, void *dst, std::size_t bytes) {
            mlxd::all_gather(static_cast<const char *>(src), static_cast<char *>(dst), bytes,
                             world);
        });
    mlxd::Options moved = std::move(options);
    const mlxd::Group second = mlxd::init(true, "ring", moved);
    CHECK(second.rank() == rank && second.size() == size && second.backend() == "ring");
    CHECK(mlxd::all_sum(1, second) == size);
    mlxd::barrier(world);

    CHECK_THROWS(moved.set("MLXD_NO_SUCH_SETTING", "1"), invalid_argument);
    moved.set_all_gather([](const void *, void *, std::size_t) { throw std::runtime_error("no"); });
    if (size > 1) {
        const Status failed = thrown([&] { (void)mlxd::init(true, "ring", moved); });
        CHECK(failed != Status::ok && failed != Status::internal);
    }
}

void check_facts(const mlxd::Group &world) {
    CHECK(mlxd::version() == mlxd_version());
    CHECK(mlxd::is_available() && mlxd::is_available("ring") && !mlxd::is_available("no such"));
    CHECK(mlxd::status_name(Status::peer_lost) == "MLXD_ERROR_PEER_LOST");
    CHECK(world.backend() == test_backend());
    CHECK_THROWS((void)mlxd::init(false, "no such"), invalid_argument);
    try {
        mlxd::broadcast(Span<float>(), size + 5, world);
        CHECK(!"a root that is no rank");
    } catch (const std::exception &error) {
        CHECK(std::string(error.what()) == mlxd_last_error());
    }
    try {
        Ints input(3), output(2);
        mlxd::all_sum(input, output, world);
        CHECK(!"3 into 2");
    } catch (const mlxd::Error &error) {
        CHECK(std::string(error.what()) == "all_sum: the output holds 2 elements, but 3 come");
    }
}

// ---- Failures and the default world -------------------------------------------------------------

void check_failing(const mlxd::Group &world) {
    using namespace std::chrono_literals;
    const mlxd::Group first = world.split(0), second = world.split(0);
    if (size > 1 && rank == 0) {
        // Nobody sends: the receive runs into the group's limit.
        first.set_timeout(50ms);
        CHECK_THROWS((void)mlxd::recv<int>(1, 1, first), timeout);
        CHECK(first.status() == Status::timeout);
        CHECK_THROWS((void)mlxd::all_sum(1, first), timeout);
        // On a stream the failure waits for who asks, and is told once.
        Ints never(1);
        const mlxd::Stream stream;
        second.set_timeout(50ms);
        mlxd::recv(never, 1, second, stream);
        CHECK_THROWS(stream.synchronize(), timeout);
        stream.synchronize();
    }
    mlxd::barrier(world);
    CHECK_THROWS(world.set_timeout(-1ms), invalid_argument);
    world.set_timeout(1min);

    const mlxd::Group aborted = world.split(0);
    mlxd::barrier(world);
    aborted.abort();
    CHECK(aborted.status() == Status::aborted);
    CHECK_THROWS(mlxd::barrier(aborted), aborted);
    char folder[] = "/tmp/mlxd-hpp-XXXXXX";
    REQUIRE(mkdtemp(folder) != nullptr);
    const std::string path = std::string(folder) + "/dump.json";
    aborted.dump(path);
    CHECK_THROWS(aborted.dump(path + "/none"), system);
    CHECK(std::remove(path.c_str()) == 0 && std::remove(folder) == 0);
    CHECK(world.status() == Status::ok);
    mlxd::barrier(world);
}

// The default world is the one that init() returns, now and after that one has ended.
void check_default_world(mlxd::Group world) {
    CHECK(mlxd::all_sum(1) == size);

    // It outlives the program's own handle ...
    world = mlxd::Group();
    CHECK(mlxd::all_sum(1) == size);
    world = mlxd::init();
    CHECK(mlxd::all_sum(1, world) == size);

    // ... not finalize(), which lets the next call start a new one. (MPI starts once in a process.)
    mlxd::barrier();
    if (!over_mpi()) {
        mlxd::finalize();
        CHECK(world.status() == Status::aborted);
        CHECK_THROWS(mlxd::barrier(world), aborted);
    }
    CHECK(mlxd::all_sum(1) == size);
    CHECK(mlxd::init().size() == size);

    // If it fails it stays so, until init() gives a new one.
    if (size > 1) {
        world = mlxd::init();
        const Status passed = thrown([] { mlxd::barrier(); });
        CHECK(passed == Status::ok || passed == Status::aborted); // another was here before
        world.abort();
        CHECK_THROWS(mlxd::barrier(), aborted);
        CHECK_THROWS((void)mlxd::all_sum(1), aborted);
        world = mlxd::init();
        CHECK(mlxd::all_sum(1) == size);
        CHECK(mlxd::all_sum(1, world) == size);
    }
}

// Destroyed after the library has said goodbye, or at the latest with it.
struct Late {
    ~Late() {
        const Status status = thrown([] { mlxd::barrier(); });
        if (status != Status::aborted && status != Status::ok) {
            fprintf(stderr, "rank %d: at the end: %s\n", rank, mlxd_last_error());
            _exit(1);
        }
    }
};

} // namespace

int main() {
    check_start(240);
    static const Late late;
    try {
        mlxd::Group world = mlxd::init(true, test_backend());
        rank = check_rank = world.rank();
        size = world.size();
        ranks = static_cast<std::size_t>(size);

        check_span();
        check_facts(world);
        check_reductions(world);
        check_all_gather(world);
        check_sum_scatter(world);
        check_all_to_all(world);
        check_broadcast(world);
        check_messages(world);
        check_types(world);
#if __cplusplus >= 202002L
        check_std_span(world);
#endif
        check_split(world);
        check_owners(world);
        check_threads(world);
        check_options(world);
        check_failing(world);
        check_default_world(std::move(world));
    } catch (const std::exception &error) {
        fprintf(stderr, "rank %d: %s\n", check_rank, error.what());
        _exit(1);
    }
    return check_finish("hpp");
}
