/// \file
/// libmlxd for C++17: groups and streams that free themselves, calls that know the types of their
/// arguments, and failures as exceptions.
///
///     #include <mlxd.hpp>
///
///     mlxd::Group world = mlxd::init();
///     float sum = mlxd::all_sum(1.0F);                     // a value, over the world
///     std::vector<float> gradient(1000);
///     mlxd::all_sum(gradient, gradient, world);            // in place
///     mlxd::Stream stream;
///     mlxd::all_sum(gradient, gradient, world, stream);    // beside what follows ...
///     stream.synchronize();                                // ... until here
///
/// Everything is a thin layer over mlxd.h, which says what each call does, when it blocks and which
/// errors there are; both may be used side by side. Link the library; this file has no code of its
/// own to link.
///
/// **Groups.** A call without a group uses the *default world*, the one that init() returns. It is
/// started by the first such call and kept until finalize() or the end of the process. If it fails,
/// calls without a group throw that failure until the program has called init() or finalize(). The
/// end of the process says goodbye to the other ranks: calls that destructors of static objects
/// make after that throw Status::aborted.
///
/// **Buffers.** A range is whatever has data() and size(), such as std::vector, std::array, Span
/// and std::span, or an array. An operation comes in up to four forms:
///
///     all_sum(data, data, count, ...)   memory as in mlxd.h
///     all_sum(input, output, ...)       two ranges; one range twice: in place
///     all_sum(Span(range), ...)         a view alone: in place
///     y = all_sum(x)                    a number, std::vector or std::array: a new value
///
/// Sizes that do not fit each other throw Status::invalid_argument before anything is done. Below,
/// n is the size of the group, `rank` this process's place in it, and x[i] element i.
///
/// **Streams.** With a stream a call returns once its arguments were checked; its buffers must stay
/// as they are until Stream::synchronize() has returned. New values are never made on a stream.
///
/// **Errors.** Whatever fails throws Error, out of memory std::bad_alloc.

#ifndef MLXD_HPP
#define MLXD_HPP

#if __cplusplus < 201703L && (!defined(_MSVC_LANG) || _MSVC_LANG < 201703L)
#error "mlxd.hpp needs C++17; mlxd.h serves C and older C++"
#endif

#include "mlxd.h"

#include <array>
#include <chrono>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// Half types of the compiler. GCC 12 has _Float16 in C++ on x86 only.
#if defined(__clang__)
#if __clang_major__ >= 17 && defined(__FLT16_MANT_DIG__)
#define MLXD_HAS_FLOAT16 1
#endif
#if __clang_major__ >= 17 && (defined(__SSE2__) || defined(__aarch64__))
#define MLXD_HAS_BF16 1
#endif
#elif defined(__GNUC__)
#if defined(__FLT16_MANT_DIG__) && (__GNUC__ >= 13 || (__GNUC__ == 12 && defined(__SSE2__)))
#define MLXD_HAS_FLOAT16 1
#endif
#if defined(__BFLT16_MANT_DIG__) && __GNUC__ >= 13
#define MLXD_HAS_BF16 1
#endif
#endif

/// libmlxd for C++.
namespace mlxd {

// ---- Errors -------------------------------------------------------------------------------------

/// What a call came to: the MLXD_ERROR_ constants of mlxd.h.
enum class Status : mlxd_status {
    ok = MLXD_OK,                                   ///< Success.
    invalid_argument = MLXD_ERROR_INVALID_ARGUMENT, ///< Nothing was done; the group works on.
    unsupported = MLXD_ERROR_UNSUPPORTED,           ///< Not in this backend or build.
    unavailable = MLXD_ERROR_UNAVAILABLE,           ///< Library or device are not here.
    config = MLXD_ERROR_CONFIG,                     ///< Settings are missing or malformed.
    timeout = MLXD_ERROR_TIMEOUT,                   ///< A deadline passed.
    peer_lost = MLXD_ERROR_PEER_LOST,               ///< Another rank died or left too early.
    aborted = MLXD_ERROR_ABORTED,                   ///< Group::abort() or finalize().
    mismatch = MLXD_ERROR_MISMATCH,                 ///< Ranks called different things.
    auth = MLXD_ERROR_AUTH,                         ///< A peer does not know the secret.
    system = MLXD_ERROR_SYSTEM,                     ///< The operating system said no.
    backend = MLXD_ERROR_BACKEND,                   ///< MPI, CUDA, NCCL or verbs said no.
    internal = MLXD_ERROR_INTERNAL,                 ///< A bug in the library.
};

/// The name of a status as in mlxd.h, such as "MLXD_ERROR_TIMEOUT".
[[nodiscard]] inline std::string_view status_name(Status status) noexcept {
    return mlxd_status_name(static_cast<mlxd_status>(status));
}

/// A call that failed: its status, and in what() a sentence that says what was wrong, where, and
/// what would be right.
class Error : public std::runtime_error {
public:
    /// An error with this status and sentence.
    Error(Status status, const std::string &message)
        : std::runtime_error(message), status_(status) {
    }

    /// The kind of failure; never Status::ok.
    [[nodiscard]] Status status() const noexcept {
        return status_;
    }

private:
    Status status_;
};

namespace detail {

// Throws what this thread's last call failed with. A thread that is ending may have forgotten it.
[[noreturn]] inline void fail(mlxd_status status) {
    const std::string_view message = mlxd_last_error();
    throw Error(status == MLXD_OK ? Status::internal : static_cast<Status>(status),
                std::string(message.empty() ? mlxd_status_name(status) : message));
}

// The same for a call that returned no status.
[[noreturn]] inline void throw_last() {
    fail(mlxd_last_status());
}

inline void check(mlxd_status status) {
    if (status != MLXD_OK) {
        fail(status);
    }
}

[[noreturn]] inline void refuse(const std::string &message) {
    throw Error(Status::invalid_argument, message);
}

} // namespace detail

// ---- Element types ------------------------------------------------------------------------------

/// The bits of an IEEE 754 binary16, where the compiler has no type for it.
struct float16 {
    std::uint16_t bits; ///< sign, 5 bits of exponent, 10 of fraction
};

/// The bits of a bfloat16, the upper half of a float, where the compiler has no type for it.
struct bfloat16 {
    std::uint16_t bits; ///< sign, 8 bits of exponent, 7 of fraction
};

/// Has `value`, the MLXD_ constant of T, for every T that can be sent: bool, integers, std::byte,
/// float, double, std::complex<float>, float16, bfloat16, and the compiler's _Float16 and __bf16.
/// A program may specialise it for a type of its own that has the same bytes as one of these.
template <class T, class = void> struct DtypeOf {};

template <> struct DtypeOf<bool> {
    static_assert(sizeof(bool) == 1, "a bool of mlxd.h is one byte");
    static constexpr mlxd_dtype value = MLXD_BOOL; ///< One byte, 0 or 1.
};

/// Integers, char and long among them, go by their size and sign.
template <class T>
struct DtypeOf<T,
               std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool> &&
                                !std::is_const_v<T> && !std::is_volatile_v<T> && sizeof(T) <= 8>> {
    static constexpr bool is_signed = std::is_signed_v<T>; ///< Whether there are negative ones.
    /// One of the eight integer types.
    static constexpr mlxd_dtype value = sizeof(T) == 1   ? (is_signed ? MLXD_INT8 : MLXD_UINT8)
                                        : sizeof(T) == 2 ? (is_signed ? MLXD_INT16 : MLXD_UINT16)
                                        : sizeof(T) == 4 ? (is_signed ? MLXD_INT32 : MLXD_UINT32)
                                                         : (is_signed ? MLXD_INT64 : MLXD_UINT64);
};

template <> struct DtypeOf<std::byte> : std::integral_constant<mlxd_dtype, MLXD_UINT8> {};
template <> struct DtypeOf<float16> : std::integral_constant<mlxd_dtype, MLXD_FLOAT16> {};
template <> struct DtypeOf<bfloat16> : std::integral_constant<mlxd_dtype, MLXD_BFLOAT16> {};
template <> struct DtypeOf<float> : std::integral_constant<mlxd_dtype, MLXD_FLOAT32> {};
template <> struct DtypeOf<double> : std::integral_constant<mlxd_dtype, MLXD_FLOAT64> {};
template <>
struct DtypeOf<std::complex<float>> : std::integral_constant<mlxd_dtype, MLXD_COMPLEX64> {};
#ifdef MLXD_HAS_FLOAT16
namespace detail {
__extension__ typedef _Float16 CompilersFloat16;
}
template <>
struct DtypeOf<detail::CompilersFloat16> : std::integral_constant<mlxd_dtype, MLXD_FLOAT16> {};
#endif
#ifdef MLXD_HAS_BF16
namespace detail {
__extension__ typedef __bf16 CompilersBfloat16;
}
template <>
struct DtypeOf<detail::CompilersBfloat16> : std::integral_constant<mlxd_dtype, MLXD_BFLOAT16> {};
#endif

/// The MLXD_ constant of an element type, as in `dtype<float> == MLXD_FLOAT32`.
template <class T> inline constexpr mlxd_dtype dtype = DtypeOf<std::remove_cv_t<T>>::value;

// ---- Ranges -------------------------------------------------------------------------------------

/// A view of `size()` elements one after the other: std::span for C++17. Made from whatever has
/// data() and size(), from arrays, and from a pointer and a count. Owns nothing.
template <class T> class Span {
public:
    using element_type = T;                 ///< const where only read
    using value_type = std::remove_cv_t<T>; ///< without const
    using iterator = T *;                   ///< random access

    /// No elements.
    constexpr Span() noexcept = default;

    /// `count` elements from `data` on.
    constexpr Span(T *data, std::size_t count) noexcept : data_(data), size_(count) {
    }

    /// The elements of a range; of T or, if T is const, of the same type without it.
    template <class Range,
              class Element = std::remove_pointer_t<decltype(std::data(std::declval<Range &>()))>,
              std::enable_if_t<std::is_convertible_v<Element (*)[], T (*)[]> &&
                                   !std::is_same_v<std::decay_t<Range>, Span>,
                               int> = 0>
    constexpr Span(Range &&range) : data_(std::data(range)), size_(std::size(range)) {
    }

    /// The first element; may be null if there is none.
    [[nodiscard]] constexpr T *data() const noexcept {
        return data_;
    }
    /// The number of elements.
    [[nodiscard]] constexpr std::size_t size() const noexcept {
        return size_;
    }
    /// Whether there is no element.
    [[nodiscard]] constexpr bool empty() const noexcept {
        return size_ == 0;
    }
    /// Element `index`, which must be below size().
    [[nodiscard]] constexpr T &operator[](std::size_t index) const noexcept {
        return data_[index];
    }
    /// The first element, for loops.
    [[nodiscard]] constexpr T *begin() const noexcept {
        return data_;
    }
    /// Behind the last element.
    [[nodiscard]] constexpr T *end() const noexcept {
        return data_ + size_;
    }
    /// `count` elements from `first` on, which must be there.
    [[nodiscard]] constexpr Span subspan(std::size_t first, std::size_t count) const noexcept {
        return {data_ + first, count};
    }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/// Span(pointer, count) views what the pointer points to.
template <class T> Span(T *, std::size_t) -> Span<T>;
/// Span(range) views the elements of the range, const where the range is.
template <class Range>
Span(Range &&) -> Span<std::remove_pointer_t<decltype(std::data(std::declval<Range &>()))>>;

namespace detail {

template <class T, class = void> struct IsElement : std::false_type {};
template <class T>
struct IsElement<T, std::void_t<decltype(DtypeOf<std::remove_cv_t<T>>::value)>> : std::true_type {};

template <class R, class = void> struct IsRange : std::false_type {};
template <class R>
struct IsRange<R, std::void_t<decltype(std::data(std::declval<R &>())),
                              decltype(std::size(std::declval<R &>()))>> : std::true_type {};
// Counts as one, so that view() can say what is wrong with it.
template <class A> struct IsRange<std::vector<bool, A>> : std::true_type {};
template <class A> struct IsRange<const std::vector<bool, A>> : std::true_type {};

template <class T> struct IsBitVector : std::false_type {};
template <class A> struct IsBitVector<std::vector<bool, A>> : std::true_type {};

// What can be made anew with the shape of another: a number, a vector, an array.
template <class X> struct IsValue : IsElement<X> {};
template <class T, class A> struct IsValue<std::vector<T, A>> : std::true_type {};
template <class T, std::size_t N> struct IsValue<std::array<T, N>> : std::true_type {};

template <class... R>
using Ranges = std::enable_if_t<(IsRange<std::remove_reference_t<R>>::value && ...), int>;
template <class X> using Element = std::enable_if_t<IsElement<X>::value, int>;
template <class X> using Value = std::enable_if_t<IsValue<X>::value, int>;

// The elements of a range, or a number as a range of one.
template <class X> constexpr auto view(X &x) {
    static_assert(!IsBitVector<std::remove_cv_t<X>>::value,
                  "std::vector<bool> holds bits, not elements that could be sent: use an array of "
                  "bool, or std::vector<std::uint8_t>");
    if constexpr (IsBitVector<std::remove_cv_t<X>>::value) {
        return Span<bool>(); // the assertion is error enough
    } else if constexpr (IsRange<X>::value) {
        const Span elements(x);
        static_assert(IsElement<typename decltype(elements)::value_type>::value,
                      "no dtype of mlxd.h for elements of this type: see mlxd::DtypeOf");
        return elements;
    } else {
        return Span<X>(&x, 1);
    }
}

template <class X> using ViewedElement = typename decltype(view(std::declval<X &>()))::value_type;

} // namespace detail

// ---- Groups and streams -------------------------------------------------------------------------

/// Ranks that compute together, as one of them sees them: owns an mlxd_group. Can be moved, not
/// copied. Empty after a move, after release(), and where split() left this rank out; calls on an
/// empty one throw Status::invalid_argument.
///
/// Any thread may use it while none moves or destroys it. `const` is about the handle: a const
/// Group can take part in every operation.
class Group {
public:
    /// An empty group.
    Group() noexcept = default;

    /// Takes over a handle, to be freed by this object.
    [[nodiscard]] static Group adopt(mlxd_group *handle) noexcept {
        Group group;
        group.handle_.reset(handle);
        return group;
    }

    /// Gives the handle up, to be freed by the caller; this group is empty then.
    [[nodiscard]] mlxd_group *release() noexcept {
        return handle_.release();
    }

    /// The handle, for calls of mlxd.h; null if the group is empty.
    [[nodiscard]] mlxd_group *native() const noexcept {
        return handle_.get();
    }

    /// Whether there is a group.
    [[nodiscard]] explicit operator bool() const noexcept {
        return handle_ != nullptr;
    }

    /// This process's rank, 0 to size() - 1.
    [[nodiscard]] int rank() const {
        return not_negative(mlxd_group_rank(native()));
    }

    /// The number of ranks, at least 1.
    [[nodiscard]] int size() const {
        return not_negative(mlxd_group_size(native()));
    }

    /// What the group runs on: "ring", "mpi", "nccl", "jaccl", or "none" for a process alone.
    /// The text ends with a NUL and stays for good.
    [[nodiscard]] std::string_view backend() const {
        const char *name = mlxd_group_backend(native());
        if (name == nullptr) {
            detail::throw_last();
        }
        return name;
    }

    /// A new group of those ranks that pass the same colour, ordered by key, ties by rank; a
    /// negative key stands for the rank. Colour -1: an empty group. All ranks must call it. See
    /// mlxd_group_split().
    [[nodiscard]] Group split(int color, int key = -1) const {
        mlxd_group *part = nullptr;
        detail::check(mlxd_group_split(native(), color, key, &part));
        return adopt(part);
    }

    /// How long each operation that is called from now on, receives included, may go without
    /// progress; 0: no limit.
    void set_timeout(std::chrono::milliseconds limit) const {
        if (limit.count() < 0) {
            detail::refuse("set_timeout: a limit of " + std::to_string(limit.count()) +
                           " ms: it must be positive, or 0 for none");
        }
        detail::check(mlxd_group_set_timeout(native(), static_cast<std::uint64_t>(limit.count())));
    }

    /// Status::ok while the group works, or what failed it: what every call on it throws from then
    /// on. Status::invalid_argument for an empty group.
    [[nodiscard]] Status status() const noexcept {
        return static_cast<Status>(mlxd_group_status(native()));
    }

    /// Fails the group on all its ranks: whoever waits in it throws Status::aborted within a
    /// second. Its parent, and groups split from it, work on.
    void abort() const {
        detail::check(mlxd_group_abort(native()));
    }

    /// Writes the last operations of this rank to a file, for mlxd-inspect: at any time, also while
    /// another thread waits in the group. See mlxd_group_dump().
    void dump(const std::string &path) const {
        detail::check(mlxd_group_dump(native(), path.c_str()));
    }

private:
    struct Free {
        void operator()(mlxd_group *handle) const noexcept {
            mlxd_group_free(handle);
        }
    };

    static int not_negative(std::int32_t number) {
        if (number < 0) {
            detail::throw_last();
        }
        return number;
    }

    std::unique_ptr<mlxd_group, Free> handle_;
};

/// A queue of operations that run in order beside the program: owns an mlxd_stream. Can be moved,
/// not copied; empty after that. Any thread may use it while none moves or destroys it.
///
/// Destroying it waits for what is queued, so that buffers may be freed after it: declare the
/// stream after the buffers. Failures that no synchronize() asked for are lost then.
class Stream {
public:
    /// A new, empty queue with a thread.
    Stream() : Stream(mlxd_stream_new()) {
        if (!handle_) {
            detail::throw_last();
        }
    }

    /// A stream for a cudaStream_t, which the caller owns and keeps alive; for groups on nccl only.
    [[nodiscard]] static Stream from_cuda(void *cuda_stream) {
        Stream stream(mlxd_stream_from_cuda(cuda_stream));
        if (!stream.handle_) {
            detail::throw_last();
        }
        return stream;
    }

    /// Takes over a handle, to be freed by this object.
    [[nodiscard]] static Stream adopt(mlxd_stream *handle) noexcept {
        return Stream(handle);
    }

    /// Gives the handle up, to be freed by the caller; this stream is empty then.
    [[nodiscard]] mlxd_stream *release() noexcept {
        return handle_.release();
    }

    /// The handle, for calls of mlxd.h; null if the stream is empty.
    [[nodiscard]] mlxd_stream *native() const noexcept {
        return handle_.get();
    }

    /// Waits until everything that was put on the stream before has run: then the results are
    /// complete and the buffers the caller's again. Throws the first failure among it, once.
    void synchronize() const {
        detail::check(mlxd_stream_synchronize(native()));
    }

private:
    struct Free {
        void operator()(mlxd_stream *handle) const noexcept {
            mlxd_stream_free(handle);
        }
    };

    explicit Stream(mlxd_stream *handle) noexcept : handle_(handle) {
    }

    std::unique_ptr<mlxd_stream, Free> handle_;
};

// ---- Start and end ------------------------------------------------------------------------------

/// Settings of one start, each named like the environment variable that it overrides. Can be moved,
/// not copied; one thread at a time may use it.
class Options {
public:
    /// Gathers `bytes` bytes from every rank: `src` has this rank's, `dst` has room for all of them
    /// and gets them in rank order. An exception fails the start.
    using AllGather = std::function<void(const void *src, void *dst, std::size_t bytes)>;

    /// No settings.
    Options() : handle_(mlxd_options_new()) {
        if (!handle_) {
            detail::throw_last();
        }
    }

    /// Sets an option; the value is checked when it is used. "" is as if neither the option nor the
    /// variable were set. Throws Status::invalid_argument if there is no setting of this name.
    Options &set(const std::string &name, const std::string &value) {
        detail::check(mlxd_options_set(native(), name.c_str(), value.c_str()));
        return *this;
    }

    /// Lets the ranks find each other through the program's own all-gather. See
    /// mlxd_options_set_all_gather().
    Options &set_all_gather(AllGather all_gather) {
        auto kept = std::make_unique<AllGather>(std::move(all_gather));
        detail::check(mlxd_options_set_all_gather(native(), call_all_gather, kept.get()));
        all_gather_ = std::move(kept);
        return *this;
    }

    /// The handle, for calls of mlxd.h; null after a move.
    [[nodiscard]] mlxd_options *native() const noexcept {
        return handle_.get();
    }

private:
    struct Free {
        void operator()(mlxd_options *handle) const noexcept {
            mlxd_options_free(handle);
        }
    };

    // Exceptions must not pass through the library.
    static std::int32_t call_all_gather(void *all_gather, const void *src, void *dst,
                                        std::size_t bytes) noexcept {
        try {
            (*static_cast<AllGather *>(all_gather))(src, dst, bytes);
            return 0;
        } catch (...) {
            return 1;
        }
    }

    std::unique_ptr<AllGather> all_gather_; // its place must not change while the handle lives
    std::unique_ptr<mlxd_options, Free> handle_;
};

namespace detail {

inline Group started(mlxd_group *handle) {
    if (handle == nullptr) {
        throw_last();
    }
    return Group::adopt(handle);
}

// The handle behind the calls without a group.
class DefaultWorld {
public:
    // Never destroyed, so that destructors of static objects may still ask for it. The library says
    // goodbye to the peers when the process ends, whoever holds the world.
    static DefaultWorld &instance() {
        static DefaultWorld &kept = *new DefaultWorld;
        return kept;
    }

    std::shared_ptr<const Group> get() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (group_) {
                return group_;
            }
        }
        // Not under the lock: a start can take a minute, and finalize() must not wait for it.
        // Threads that come here together are given the same world by the library.
        auto fresh = std::make_shared<const Group>(started(mlxd_init(false, nullptr)));
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!group_) {
            group_ = std::move(fresh);
        }
        return group_;
    }

    void forget() {
        const std::lock_guard<std::mutex> lock(mutex_);
        group_.reset();
    }

    // After a world was started: one that failed, or that was none, makes room for it.
    void forget_if_over() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (group_ && (group_->status() != Status::ok || group_->backend() == "none")) {
            group_.reset();
        }
    }

private:
    std::mutex mutex_;
    std::shared_ptr<const Group> group_;
};

} // namespace detail

/// Whether this backend could be started here: "ring", "mpi", "nccl", "jaccl", or "any" of them.
[[nodiscard]] inline bool is_available(const std::string &backend = "any") noexcept {
    return mlxd_is_available(backend.c_str());
}

/// The world of this process on a backend: the one that was started before, or a new one. With
/// nothing to start from: a group of one rank on "none", or with `strict` an Error. Each call
/// returns a handle of its own. Blocks until all ranks have come. See mlxd_init().
[[nodiscard]] inline Group init(bool strict = false, const std::string &backend = "any") {
    Group world = detail::started(mlxd_init(strict, backend.c_str()));
    detail::DefaultWorld::instance().forget_if_over();
    return world;
}

/// A new world with these options, whatever worlds there are already; never the default world. See
/// mlxd_init_with_options().
[[nodiscard]] inline Group init(bool strict, const std::string &backend, const Options &options) {
    return detail::started(mlxd_init_with_options(strict, backend.c_str(), options.native()));
}

/// A backend's name would be taken for `strict`: write `init(false, "ring")`.
template <class... More> Group init(const char *backend, const More &...more) = delete;

/// Leaves all worlds: says goodbye to the other ranks. Groups that are still there throw
/// Status::aborted; a later call without a group, or init(), starts a new world. A normal end of
/// the process does the same. See mlxd_finalize().
inline void finalize() {
    mlxd_finalize();
    detail::DefaultWorld::instance().forget();
}

/// The version of the library that is loaded, such as "0.1.0"; that of this header is in
/// MLXD_VERSION_MAJOR, MLXD_VERSION_MINOR and MLXD_VERSION_PATCH.
[[nodiscard]] inline std::string_view version() noexcept {
    return mlxd_version();
}

/// The group argument of every operation: a Group, or nothing or `{}` for the default world.
class GroupRef {
public:
    /// The default world, started now if there is none.
    GroupRef() : kept_(detail::DefaultWorld::instance().get()), handle_(kept_->native()) {
    }

    /// This group.
    GroupRef(const Group &group) noexcept : handle_(group.native()) {
    }

    /// The handle.
    [[nodiscard]] mlxd_group *native() const noexcept {
        return handle_;
    }

    /// The number of ranks.
    [[nodiscard]] std::size_t size() const {
        return not_negative(mlxd_group_size(handle_));
    }

    /// This process's rank.
    [[nodiscard]] std::size_t rank() const {
        return not_negative(mlxd_group_rank(handle_));
    }

private:
    static std::size_t not_negative(std::int32_t number) {
        if (number < 0) {
            detail::throw_last();
        }
        return static_cast<std::size_t>(number);
    }

    std::shared_ptr<const Group> kept_;
    mlxd_group *handle_;
};

/// The stream argument of every operation: a Stream, or nothing to wait for the result.
class StreamRef {
public:
    /// No stream: the call blocks.
    StreamRef() noexcept = default;

    /// This stream. Throws if it is empty: the call would block instead.
    StreamRef(const Stream &stream) : handle_(stream.native()) {
        if (handle_ == nullptr) {
            detail::refuse("the stream is empty: it was moved from or released");
        }
    }

    /// The handle; null for no stream.
    [[nodiscard]] mlxd_stream *native() const noexcept {
        return handle_;
    }

private:
    mlxd_stream *handle_ = nullptr;
};

// ---- Operations ---------------------------------------------------------------------------------

namespace detail {

// mlxd_all_sum() and whatever else has its arguments.
using Collective = mlxd_status (*)(mlxd_group *, const void *, void *, std::size_t, mlxd_dtype,
                                   mlxd_stream *);

/// A whole number in the calls on memory. Unlike a plain integer it cannot be made from `{}`, which
/// stands for the default group: all_sum(a, a, {}) is never taken for a count of 0.
template <class Number> class Whole {
public:
    template <class N, std::enable_if_t<std::is_integral_v<N> && !std::is_same_v<N, bool>, int> = 0>
    constexpr Whole(N number) noexcept : number_(static_cast<Number>(number)) {
    }
    constexpr operator Number() const noexcept {
        return number_;
    }

private:
    Number number_;
};
using Count = Whole<std::size_t>;
using Rank = Whole<int>;

template <class T>
void call(Collective collective, const T *input, T *output, std::size_t count,
          const GroupRef &group, const StreamRef &stream) {
    check(collective(group.native(), input, output, count, dtype<T>, stream.native()));
}

// "all_gather: output has room for 3 elements, but 8 come: 2 from each of 4 ranks".
inline void check_sizes(const char *name, std::size_t output, std::size_t want) {
    if (output != want) {
        refuse(std::string(name) + ": the output holds " + std::to_string(output) +
               " elements, but " + std::to_string(want) + " come");
    }
}

// How many elements each of the group's ranks has of `count`.
inline std::size_t block(const char *name, std::size_t count, std::size_t ranks) {
    if (count % ranks != 0) {
        refuse(std::string(name) + ": " + std::to_string(count) +
               " elements cannot be divided among " + std::to_string(ranks) + " ranks");
    }
    return count / ranks;
}

template <class In, class Out> void check_types() {
    static_assert(std::is_same_v<ViewedElement<In>, ViewedElement<Out>>,
                  "input and output have elements of different types");
    static_assert(!std::is_const_v<typename decltype(view(std::declval<Out &>()))::element_type>,
                  "the output is const");
}

// Input and output of one size.
template <class In, class Out>
void call_same(const char *name, Collective collective, const In &input, Out &output,
               const GroupRef &group, const StreamRef &stream) {
    check_types<In, Out>();
    const auto from = view(input);
    const auto to = view(output);
    check_sizes(name, to.size(), from.size());
    call(collective, from.data(), to.data(), from.size(), group, stream);
}

// A new value of the same shape.
template <class X> X reduced(Collective collective, const X &x, const GroupRef &group) {
    X result(x);
    const auto elements = view(result);
    call(collective, elements.data(), elements.data(), elements.size(), group, {});
    return result;
}

} // namespace detail

/// output[i] = the sum of input[i] over all ranks, for `count` elements. In place: `input ==
/// output`. See mlxd_all_sum().
template <class T>
void all_sum(const T *input, T *output, detail::Count count, GroupRef group = {},
             StreamRef stream = {}) {
    detail::call(mlxd_all_sum, input, output, count, group, stream);
}

/// output[i] = the sum of input[i] over all ranks. `output.size() == input.size()`; the same range
/// twice is in place.
template <class In, class Out, detail::Ranges<In, Out> = 0>
void all_sum(const In &input, Out &&output, GroupRef group = {}, StreamRef stream = {}) {
    detail::call_same("all_sum", mlxd_all_sum, input, output, group, stream);
}

/// buffer[i] becomes the sum of buffer[i] over all ranks.
template <class T> void all_sum(Span<T> buffer, GroupRef group = {}, StreamRef stream = {}) {
    all_sum(buffer, buffer, std::move(group), stream);
}

/// The sum of x over all ranks, element by element: of a number, a std::vector or a std::array.
template <class X, detail::Value<X> = 0> [[nodiscard]] X all_sum(const X &x, GroupRef group = {}) {
    return detail::reduced(mlxd_all_sum, x, group);
}

/// output[i] = the greatest input[i] of all ranks, for `count` elements; NaN wins. In place:
/// `input == output`. See mlxd_all_max().
template <class T>
void all_max(const T *input, T *output, detail::Count count, GroupRef group = {},
             StreamRef stream = {}) {
    detail::call(mlxd_all_max, input, output, count, group, stream);
}

/// output[i] = the greatest input[i] of all ranks. `output.size() == input.size()`; the same range
/// twice is in place.
template <class In, class Out, detail::Ranges<In, Out> = 0>
void all_max(const In &input, Out &&output, GroupRef group = {}, StreamRef stream = {}) {
    detail::call_same("all_max", mlxd_all_max, input, output, group, stream);
}

/// buffer[i] becomes the greatest buffer[i] of all ranks.
template <class T> void all_max(Span<T> buffer, GroupRef group = {}, StreamRef stream = {}) {
    all_max(buffer, buffer, std::move(group), stream);
}

/// The maximum of x over all ranks, element by element: of a number, a std::vector or a std::array.
template <class X, detail::Value<X> = 0> [[nodiscard]] X all_max(const X &x, GroupRef group = {}) {
    return detail::reduced(mlxd_all_max, x, group);
}

/// output[i] = the least input[i] of all ranks, for `count` elements; NaN wins. In place:
/// `input == output`. See mlxd_all_min().
template <class T>
void all_min(const T *input, T *output, detail::Count count, GroupRef group = {},
             StreamRef stream = {}) {
    detail::call(mlxd_all_min, input, output, count, group, stream);
}

/// output[i] = the least input[i] of all ranks. `output.size() == input.size()`; the same range
/// twice is in place.
template <class In, class Out, detail::Ranges<In, Out> = 0>
void all_min(const In &input, Out &&output, GroupRef group = {}, StreamRef stream = {}) {
    detail::call_same("all_min", mlxd_all_min, input, output, group, stream);
}

/// buffer[i] becomes the least buffer[i] of all ranks.
template <class T> void all_min(Span<T> buffer, GroupRef group = {}, StreamRef stream = {}) {
    all_min(buffer, buffer, std::move(group), stream);
}

/// The minimum of x over all ranks, element by element: of a number, a std::vector or a std::array.
template <class X, detail::Value<X> = 0> [[nodiscard]] X all_min(const X &x, GroupRef group = {}) {
    return detail::reduced(mlxd_all_min, x, group);
}

/// output[r * count + i] = input[i] of rank r. `input` holds `count` elements, `output` n * count.
/// In place: `input == output + rank * count`. See mlxd_all_gather().
template <class T>
void all_gather(const T *input, T *output, detail::Count count, GroupRef group = {},
                StreamRef stream = {}) {
    detail::call(mlxd_all_gather, input, output, count, group, stream);
}

/// output[r * input.size() + i] = input[i] of rank r. `output.size() == n * input.size()`.
template <class In, class Out, detail::Ranges<In, Out> = 0>
void all_gather(const In &input, Out &&output, GroupRef group = {}, StreamRef stream = {}) {
    detail::check_types<In, Out>();
    const auto from = detail::view(input);
    const auto to = detail::view(output);
    detail::check_sizes("all_gather", to.size(), from.size() * group.size());
    all_gather(from.data(), to.data(), from.size(), std::move(group), stream);
}

/// Block `rank` of the buffer goes to all ranks, block r of it comes from rank r; a block has
/// `buffer.size() / n` elements, and the buffer's size must be a multiple of n.
template <class T> void all_gather(Span<T> buffer, GroupRef group = {}, StreamRef stream = {}) {
    const std::size_t count = detail::block("all_gather", buffer.size(), group.size());
    const T *input = buffer.data() + group.rank() * count;
    all_gather(input, buffer.data(), count, std::move(group), stream);
}

/// The x of all ranks in rank order: of numbers n elements, of vectors and arrays n * x.size().
template <class X, detail::Value<X> = 0>
[[nodiscard]] auto all_gather(const X &x, GroupRef group = {}) {
    const auto from = detail::view(x);
    std::vector<detail::ViewedElement<const X>> result(from.size() * group.size());
    all_gather(from, result, std::move(group));
    return result;
}

/// output[i] = the sum of input[rank * count / n + i] over all ranks. `input` holds `count`
/// elements, a multiple of n, `output` count / n. In place: `output == input + rank * count / n`.
/// See mlxd_sum_scatter().
template <class T>
void sum_scatter(const T *input, T *output, detail::Count count, GroupRef group = {},
                 StreamRef stream = {}) {
    detail::call(mlxd_sum_scatter, input, output, count, group, stream);
}

/// output[i] = the sum of input[rank * output.size() + i] over all ranks.
/// `input.size() == n * output.size()`.
template <class In, class Out, detail::Ranges<In, Out> = 0>
void sum_scatter(const In &input, Out &&output, GroupRef group = {}, StreamRef stream = {}) {
    detail::check_types<In, Out>();
    const auto from = detail::view(input);
    const auto to = detail::view(output);
    detail::check_sizes("sum_scatter", to.size(),
                        detail::block("sum_scatter", from.size(), group.size()));
    sum_scatter(from.data(), to.data(), from.size(), std::move(group), stream);
}

/// Block `rank` of the buffer becomes the sum of that block over all ranks, and is returned; the
/// other blocks are undefined then. `buffer.size()` must be a multiple of n.
template <class T> Span<T> sum_scatter(Span<T> buffer, GroupRef group = {}, StreamRef stream = {}) {
    const std::size_t count = detail::block("sum_scatter", buffer.size(), group.size());
    const Span<T> mine = buffer.subspan(group.rank() * count, count);
    sum_scatter(buffer.data(), mine.data(), buffer.size(), std::move(group), stream);
    return mine;
}

/// This rank's block of the sum of x, a std::vector or std::array, over all ranks: x.size() / n
/// elements, and x.size() must be a multiple of n.
template <class X, detail::Ranges<X> = 0, detail::Value<X> = 0>
[[nodiscard]] auto sum_scatter(const X &x, GroupRef group = {}) {
    const auto from = detail::view(x);
    std::vector<detail::ViewedElement<const X>> result(
        detail::block("sum_scatter", from.size(), group.size()));
    sum_scatter(from, result, std::move(group));
    return result;
}

/// Block j of rank i's input becomes block i of rank j's output. Both hold `count` elements, a
/// multiple of n; a block has count / n. Not in place. See mlxd_all_to_all().
template <class T>
void all_to_all(const T *input, T *output, detail::Count count, GroupRef group = {},
                StreamRef stream = {}) {
    detail::call(mlxd_all_to_all, input, output, count, group, stream);
}

/// Block j of rank i's input becomes block i of rank j's output. `output.size() == input.size()`, a
/// multiple of n. Not in place.
template <class In, class Out, detail::Ranges<In, Out> = 0>
void all_to_all(const In &input, Out &&output, GroupRef group = {}, StreamRef stream = {}) {
    detail::call_same("all_to_all", mlxd_all_to_all, input, output, group, stream);
}

/// The blocks of x, a std::vector or std::array, exchanged: block i comes from rank i. x.size()
/// must be a multiple of n.
template <class X, detail::Ranges<X> = 0, detail::Value<X> = 0>
[[nodiscard]] X all_to_all(const X &x, GroupRef group = {}) {
    X result(x);
    all_to_all(x, result, std::move(group));
    return result;
}

/// buffer[i] of rank `root` becomes buffer[i] of every rank, for `count` elements. See
/// mlxd_broadcast().
template <class T>
void broadcast(T *buffer, detail::Count count, detail::Rank root, GroupRef group = {},
               StreamRef stream = {}) {
    detail::check(mlxd_broadcast(group.native(), buffer, count, dtype<T>, root, stream.native()));
}

/// buffer[i] of rank `root` becomes buffer[i] of every rank. All pass the same size.
template <class Range, detail::Ranges<Range> = 0>
void broadcast(Range &&buffer, int root, GroupRef group = {}, StreamRef stream = {}) {
    const auto elements = detail::view(buffer);
    broadcast(elements.data(), elements.size(), root, std::move(group), stream);
}

/// The number of rank `root` becomes that of every rank.
template <class T, detail::Element<T> = 0>
void broadcast(T &number, int root, GroupRef group = {}, StreamRef stream = {}) {
    broadcast(&number, 1, root, std::move(group), stream);
}

/// Sends `count` elements to rank `dst`. See mlxd_send().
template <class T>
void send(const T *input, detail::Count count, detail::Rank dst, GroupRef group = {},
          StreamRef stream = {}) {
    detail::check(mlxd_send(group.native(), input, count, dtype<T>, dst, stream.native()));
}

/// Sends a range to rank `dst`, which receives as many elements of the same size.
template <class Range, detail::Ranges<Range> = 0>
void send(const Range &input, int dst, GroupRef group = {}, StreamRef stream = {}) {
    const auto elements = detail::view(input);
    send(elements.data(), elements.size(), dst, std::move(group), stream);
}

/// Sends one number to rank `dst`.
template <class T, detail::Element<T> = 0>
void send(const T &number, int dst, GroupRef group = {}) {
    send(&number, 1, dst, std::move(group));
}

/// Receives `count` elements from rank `src`. See mlxd_recv().
template <class T>
void recv(T *output, detail::Count count, detail::Rank src, GroupRef group = {},
          StreamRef stream = {}) {
    detail::check(mlxd_recv(group.native(), output, count, dtype<T>, src, stream.native()));
}

/// Receives the next message of rank `src`, which must fill the range.
template <class Range, detail::Ranges<Range> = 0>
void recv(Range &&output, int src, GroupRef group = {}, StreamRef stream = {}) {
    const auto elements = detail::view(output);
    recv(elements.data(), elements.size(), src, std::move(group), stream);
}

/// The next message of rank `src`, which must have `count` elements: `recv<float>(10, 0)`.
template <class T>
[[nodiscard]] std::vector<T> recv(std::size_t count, int src, GroupRef group = {}) {
    std::vector<T> result(count);
    recv(result, src, std::move(group));
    return result;
}

/// The next message of rank `src`, which must have the type and size of x: a number, a std::vector
/// or a std::array. The elements of x do not matter.
template <class X, detail::Value<X> = 0>
[[nodiscard]] X recv_like(const X &x, int src, GroupRef group = {}) {
    X result(x);
    const auto elements = detail::view(result);
    recv(elements, src, std::move(group));
    return result;
}

/// Sends `count` elements to rank `dst` while it receives `output_count` from rank `src`. See
/// mlxd_send_recv().
template <class T>
void send_recv(const T *input, std::size_t count, int dst, T *output, std::size_t output_count,
               int src, GroupRef group = {}, StreamRef stream = {}) {
    detail::check(mlxd_send_recv(group.native(), input, count, dst, output, output_count, src,
                                 dtype<T>, stream.native()));
}

/// Sends a range to rank `dst` while it receives a message of rank `src`, which must fill the
/// other.
template <class In, class Out, detail::Ranges<In, Out> = 0>
void send_recv(const In &input, int dst, Out &&output, int src, GroupRef group = {},
               StreamRef stream = {}) {
    detail::check_types<In, Out>();
    const auto from = detail::view(input);
    const auto to = detail::view(output);
    send_recv(from.data(), from.size(), dst, to.data(), to.size(), src, std::move(group), stream);
}

/// Returns, or lets the stream go on, when every rank has called it. See mlxd_barrier().
inline void barrier(GroupRef group = {}, StreamRef stream = {}) {
    detail::check(mlxd_barrier(group.native(), stream.native()));
}

} // namespace mlxd

#undef MLXD_HAS_FLOAT16
#undef MLXD_HAS_BF16

#endif // MLXD_HPP
