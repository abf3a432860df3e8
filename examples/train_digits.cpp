// Trains a small neural network on images of handwritten digits, data-parallel over mlxd.
//
// Every rank holds the whole network and works on its share of each batch:
//
//   forward pass      the loss of this rank's images
//   backward pass     this rank's gradient, one layer at a time, the last layer first
//   mlxd::all_sum     the gradient of the whole batch, on every rank
//   parameter step    the same on every rank, so that the replicas stay identical
//
// A batch holds the same images however many ranks share it, so the loss curve is the same too,
// up to rounding. The program runs alone (a world of one needs no launcher) and on many ranks:
//
//   ./train_digits
//   mlxd-launch -n 4 ./train_digits

#include "digits.hpp"
#include "mlxd.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace digits;

// ---- Options ------------------------------------------------------------------------------

constexpr char USAGE[] =
    "usage: train_digits [options] [DATA]\n"
    "\n"
    "Trains a small neural network on 8x8 images of handwritten digits, on one or many ranks.\n"
    "DATA is a CSV file or a .gz of one, 64 pixels of 0..16 and a label of 0..9 per line; every\n"
    "rank reads it (examples/data/digits.csv.gz). Every rank must be given the same options:\n"
    "\n"
    "  --epochs N         passes over the training images (30)\n"
    "  --batch N          images per step, over all ranks together (64)\n"
    "  --hidden N         hidden units (64)\n"
    "  --lr X             learning rate (0.1)\n"
    "  --seed N           of the split, the shuffles and the first parameters (1)\n"
    "  --backend NAME     demand this backend, e.g. ring (any; alone if nothing is set up)\n"
    "  --curve FILE       write a line 'epoch loss accuracy' per epoch\n"
    "  --min-accuracy X   exit with 1 if the test accuracy ends below X percent (95)\n"
    "  --help             show this\n"
    "\n"
    "Exit status: 0 trained; 1 an error, or not accurate enough; 2 bad usage.\n";

struct Options {
    std::string data = "examples/data/digits.csv.gz";
    std::string backend;  // empty: any
    std::string curve;    // empty: none
    std::size_t epochs = 30;
    std::size_t batch = 64;
    std::size_t hidden = 64;
    std::size_t seed = 1;
    double learning_rate = 0.1;
    double min_accuracy = 95;
    bool help = false;
};

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

double parse_number(const std::string& option, const std::string& text, double low, double high) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool complete = !text.empty() && end == text.c_str() + text.size();
    if (complete && value >= low && value <= high) return value;
    std::ostringstream message;
    message << option << " takes a number from " << low << " to " << high << ", not '" << text << "'";
    throw UsageError(message.str());
}

std::size_t parse_count(const std::string& option, const std::string& text, double low = 1) {
    const double value = parse_number(option, text, low, 1e6);
    const auto count = static_cast<std::size_t>(value);
    if (static_cast<double>(count) == value) return count;
    throw UsageError(option + " takes a whole number, not '" + text + "'");
}

Options parse_options(const std::vector<std::string>& arguments) {
    Options options;
    for (auto at = arguments.begin(); at != arguments.end(); ++at) {
        const std::string& name = *at;
        const auto value = [&] {
            if (++at == arguments.end()) throw UsageError(name + " needs a value");
            return *at;
        };
        if (name.empty() || name[0] != '-') options.data = name;
        else if (name == "--epochs") options.epochs = parse_count(name, value());
        else if (name == "--batch") options.batch = parse_count(name, value());
        else if (name == "--hidden") options.hidden = parse_count(name, value());
        else if (name == "--seed") options.seed = parse_count(name, value(), 0);
        else if (name == "--lr") options.learning_rate = parse_number(name, value(), 1e-6, 1e3);
        else if (name == "--min-accuracy") options.min_accuracy = parse_number(name, value(), 0, 100);
        else if (name == "--curve") options.curve = value();
        else if (name == "--backend") options.backend = value();
        else if (name == "--help") options.help = true;
        else throw UsageError("unknown option '" + name + "'");
    }
    return options;
}

// ---- Communication ------------------------------------------------------------------------

// All ranks. Unless a backend is demanded, a process that was started as part of no world runs alone.
mlxd::Group join_world(const std::string& backend) {
    mlxd::Group world = backend.empty() ? mlxd::init() : mlxd::init(true, backend);
    if (world.backend() == "nccl") {
        throw std::runtime_error("nccl needs GPU memory and this program has none: try --backend ring");
    }
    return world;
}

// ---- Training -----------------------------------------------------------------------------

double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What one epoch gave. Loss and accuracy are of all ranks, the times are this rank's.
struct Epoch {
    double loss;      // mean over the training images, each seen before its batch's step
    double accuracy;  // percent of the test images, after the epoch
    double images;    // trained on
    double seconds;   // of training; testing and the sum of loss and accuracy are not in it
    double waiting;   // seconds of these in Stream::synchronize: the communication that the
                      // backward pass could not hide, and waiting for slower ranks
};

class Trainer {
public:
    Trainer(const mlxd::Group& world, const Options& options, const Images& images)
        : world_(world), options_(options), images_(images), random_(options.seed),
          hidden_(PIXELS, options.hidden), output_(options.hidden, CLASSES) {
        split_images();
        initialise_parameters();
    }

    Epoch run_epoch() {
        Epoch epoch{};
        const double start = seconds_now();
        random_.shuffle(train_);  // alike on every rank: all draw the same numbers
        double loss = 0;
        for (std::size_t begin = 0; begin < train_.size(); begin += options_.batch) {
            loss += train_batch(begin, std::min(begin + options_.batch, train_.size()), epoch.waiting);
        }
        epoch.seconds = seconds_now() - start;
        epoch.images = static_cast<double>(train_.size());

        const double correct = mlxd::all_sum(count_correct_tests(), world_);
        epoch.loss = mlxd::all_sum(loss, world_) / epoch.images;
        epoch.accuracy = 100 * correct / static_cast<double>(test_.size());
        return epoch;
    }

    // Every rank took every step itself. If they now differ in a single bit, the sums did.
    void check_replicas() const {
        for (const Layer* layer : {&hidden_, &output_}) {
            const Floats low = mlxd::all_min(layer->parameters, world_);
            const Floats high = mlxd::all_max(layer->parameters, world_);
            if (std::memcmp(low.data(), high.data(), low.size() * sizeof(float)) != 0) {
                throw std::runtime_error("the ranks' parameters differ");
            }
        }
    }

    std::size_t train_images() const { return train_.size(); }
    std::size_t test_images() const { return test_.size(); }
    std::size_t parameters() const { return hidden_.parameters.size() + output_.parameters.size(); }

private:
    // A fifth of the images, drawn at random, is the test set.
    void split_images() {
        train_.resize(images_.size());
        std::iota(train_.begin(), train_.end(), std::size_t{0});
        random_.shuffle(train_);
        const auto middle = train_.begin() + static_cast<std::ptrdiff_t>(train_.size() * 4 / 5);
        test_.assign(middle, train_.end());
        train_.erase(middle, train_.end());
    }

    // Rank 0 draws the parameters, the others receive them.
    void initialise_parameters() {
        Random draws(options_.seed + 1);  // its own: random_ has to stay in step on all ranks
        for (Layer* layer : {&hidden_, &output_}) {
            if (world_.rank() == 0) layer->initialise(draws);
            mlxd::broadcast(layer->parameters, 0, world_);
        }
    }

    // This rank's share of positions begin..end-1. Shares differ by at most one image; some are
    // empty if there are more ranks than images, and such a rank still takes part in every sum.
    Images share(const Indices& order, std::size_t begin, std::size_t end) const {
        const auto rank = static_cast<std::size_t>(world_.rank());
        const auto size = static_cast<std::size_t>(world_.size());
        const std::size_t whole = end - begin;
        return gather(images_, order, begin + whole * rank / size, begin + whole * (rank + 1) / size);
    }

    // One step, over the batch at positions begin..end-1. Returns the loss of this rank's share.
    double train_batch(std::size_t begin, std::size_t end, double& waiting) {
        // step 0: forward
        const Images batch = share(train_, begin, end);
        Floats activations = hidden_.forward(batch.pixels);
        relu(activations);
        Floats scores = output_.forward(activations);
        const double loss = cross_entropy(scores, batch.labels);
        const Floats& scores_gradient = scores;

        // step 1: the last layer's gradient, which starts to travel ...
        output_.backward_parameters(activations, scores_gradient);
        start_sum(output_);

        // step 2: ... while the layer before it computes its own
        Floats hidden_gradient = output_.backward_input(scores_gradient);
        relu_backward(activations, hidden_gradient);
        hidden_.backward_parameters(batch.pixels, hidden_gradient);
        start_sum(hidden_);

        // step 3: until this returns, the gradients are the library's
        const double start = seconds_now();
        stream_.synchronize();
        waiting += seconds_now() - start;

        // step 4: the sum over the batch becomes a mean; every rank takes the same step
        const auto learning_rate = static_cast<float>(options_.learning_rate);
        const float scale = 1.0F / static_cast<float>(end - begin);
        hidden_.step(learning_rate, scale);
        output_.step(learning_rate, scale);
        return loss;
    }

    // Queues the sum of a layer's gradient over all ranks, in place.
    void start_sum(Layer& layer) const {
        mlxd::all_sum(layer.gradient, layer.gradient, world_, stream_);
    }

    // In this rank's share of the test images.
    double count_correct_tests() const {
        const Images tests = share(test_, 0, test_.size());
        Floats activations = hidden_.forward(tests.pixels);
        relu(activations);
        return static_cast<double>(count_correct(output_.forward(activations), tests.labels));
    }

    const mlxd::Group& world_;
    const Options& options_;
    const Images& images_;
    Random random_;
    Indices train_, test_;  // which images, in which order
    Layer hidden_, output_;
    // Last, so that it is freed first: that waits for sums which still use the layers' gradients.
    mlxd::Stream stream_;
};

// ---- Report -------------------------------------------------------------------------------

// What the user sees of rank 0; the other ranks make none.
class Report {
public:
    explicit Report(const Options& options)
        : epochs_(options.epochs), redraws_(isatty(STDOUT_FILENO) == 1), curve_path_(options.curve) {
        if (curve_path_.empty()) return;
        curve_.reset(std::fopen(curve_path_.c_str(), "w"));
        if (!curve_) throw system_error("cannot write " + curve_path_, errno);
    }
    ~Report() {
        if (redraws_ && done_ > 0 && done_ < epochs_) std::puts("");  // leave the bar; an error follows
    }

    void start(const mlxd::Group& world, const Trainer& trainer) const {
        std::printf("world: backend %s, %d %s; %zu training and %zu test images; %zu parameters\n",
                    world.backend().data(), world.size(), world.size() == 1 ? "rank" : "ranks",
                    trainer.train_images(), trainer.test_images(), trainer.parameters());
        std::fflush(stdout);
    }

    void add(const Epoch& epoch) {
        ++done_;
        last_ = epoch;
        total_.images += epoch.images;
        total_.seconds += epoch.seconds;
        total_.waiting += epoch.waiting;
        write_curve(epoch);
        if (redraws_) {
            constexpr std::size_t WIDTH = 8;
            const std::size_t filled = WIDTH * done_ / epochs_;
            const std::string bar = std::string(filled, '#') + std::string(WIDTH - filled, '.');
            std::printf("\r\033[K[%s] %zu/%zu", bar.c_str(), done_, epochs_);
        } else {
            std::printf("epoch %zu/%zu", done_, epochs_);
        }
        std::printf("  loss %.5f  test %.2f %%", epoch.loss, epoch.accuracy);
        std::printf("  %.0f images/s  waiting %.1f %%", speed(epoch), waiting_share(epoch));
        if (!redraws_ || done_ == epochs_) std::puts("");
        std::fflush(stdout);
    }

    void finish() const {
        std::printf("test accuracy %.2f %%\n", last_.accuracy);
        std::printf("final loss %.6f\n", last_.loss);
        std::printf("speed %.0f images/s, %.2f s of training\n", speed(total_), total_.seconds);
        std::printf("communication %.1f %% (rank 0's training time in mlxd::Stream::synchronize)\n",
                    waiting_share(total_));
        std::fflush(stdout);
    }

private:
    static double speed(const Epoch& epoch) { return epoch.images / epoch.seconds; }
    static double waiting_share(const Epoch& epoch) { return 100 * epoch.waiting / epoch.seconds; }

    void write_curve(const Epoch& epoch) {
        if (!curve_) return;
        std::fprintf(curve_.get(), "%zu %.9g %.9g\n", done_, epoch.loss, epoch.accuracy);
        if (std::fflush(curve_.get()) != 0) throw system_error("cannot write " + curve_path_, errno);
    }

    std::size_t epochs_, done_ = 0;
    bool redraws_;
    std::string curve_path_;
    File curve_;
    Epoch last_{}, total_{};
};

// Whether the network ended accurate enough; the answer is the same on every rank.
bool train(const Options& options) {
    const Images images = load(options.data);  // first: no peer then waits for a rank without data
    const mlxd::Group world = join_world(options.backend);
    Trainer trainer(world, options, images);
    std::unique_ptr<Report> report;
    if (world.rank() == 0) report = std::make_unique<Report>(options);

    if (report) report->start(world, trainer);
    double accuracy = 0;
    for (std::size_t epoch = 0; epoch < options.epochs; ++epoch) {
        const Epoch result = trainer.run_epoch();
        accuracy = result.accuracy;
        if (report) report->add(result);
    }
    trainer.check_replicas();
    if (report) report->finish();

    if (accuracy >= options.min_accuracy) return true;
    if (report) {
        std::fprintf(stderr, "train_digits: the test accuracy, %.2f %%, is below --min-accuracy %g\n",
                     accuracy, options.min_accuracy);
    }
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const Options options = parse_options({argv + 1, argv + argc});
        if (options.help) return std::fputs(USAGE, stdout) < 0 ? 1 : 0;
        return train(options) ? 0 : 1;
    } catch (const UsageError& error) {
        std::fprintf(stderr, "train_digits: %s (--help lists the options)\n", error.what());
        return 2;
    } catch (const mlxd::Error& error) {
        const std::string name(mlxd::status_name(error.status()));
        std::fprintf(stderr, "train_digits: %s: %s\n", name.c_str(), error.what());
        return 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "train_digits: %s\n", error.what());
        return 1;
    }
}
