// The data and the network of train_digits: what a program on one rank would need as well.
// Nothing here knows of mlxd.

#ifndef DIGITS_HPP
#define DIGITS_HPP

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

extern char** environ;

namespace digits {

using Floats = std::vector<float>;
using Indices = std::vector<std::size_t>;

constexpr std::size_t PIXELS = 64;   // an image is 8 x 8 pixels,
constexpr int BLACK = 16;            // each of 0 (white) to 16
constexpr std::size_t CLASSES = 10;  // the digits 0 to 9
constexpr float MOMENTUM = 0.9F;

// ---- Random numbers -----------------------------------------------------------------------

// splitmix64. std::shuffle and the distributions of <random> differ between standard libraries;
// this gives the same run with all of them.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        std::uint64_t z = (state_ += 0x9E3779B97F4A7C15U);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
        return z ^ (z >> 31);
    }

    // Uniform in [-limit, limit), from as many bits as a float holds exactly.
    float uniform(float limit) {
        return limit * (static_cast<float>(next() >> 40) / static_cast<float>(1 << 23) - 1.0F);
    }

    void shuffle(Indices& items) {
        for (std::size_t left = items.size(); left > 1; --left) {
            std::swap(items[left - 1], items[next() % left]);
        }
    }

private:
    std::uint64_t state_;
};

// ---- Data ---------------------------------------------------------------------------------

struct Images {
    Floats pixels;   // PIXELS per image, scaled to -1..1
    Indices labels;  // the digit that each image shows

    std::size_t size() const { return labels.size(); }
};

inline std::runtime_error system_error(const std::string& what, int error) {
    return std::runtime_error(what + ": " + std::strerror(error));
}

struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

inline std::string read_all(std::FILE* file, const std::string& path) {
    std::string text;
    char block[65536];
    while (const std::size_t got = std::fread(block, 1, sizeof block, file)) text.append(block, got);
    if (std::ferror(file)) throw system_error("cannot read " + path, errno);
    return text;
}

// Starts `gzip -dc` and returns its process id. No shell is involved and gzip never sees the path.
inline pid_t start_gzip(int input, int output, int not_for_gzip) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addclose(&actions, not_for_gzip);
    posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    char program[] = "gzip", flags[] = "-dc";
    char* const command[] = {program, flags, nullptr};
    pid_t child = 0;
    const int error = posix_spawnp(&child, program, &actions, nullptr, command, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) throw system_error("cannot start gzip", error);
    return child;
}

inline std::string gunzip(std::FILE* file, const std::string& path) {
    int ends[2];
    if (pipe(ends) != 0) throw system_error("pipe", errno);
    const File from_gzip(fdopen(ends[0], "r"));
    File to_us(fdopen(ends[1], "w"));
    if (!from_gzip || !to_us) throw system_error("fdopen", errno);
    const pid_t child = start_gzip(fileno(file), ends[1], ends[0]);
    to_us.reset();  // while we hold this end, the other never sees the end of the data
    const std::string text = read_all(from_gzip.get(), path);
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) throw system_error("waitpid", errno);
    }
    if (status != 0) throw std::runtime_error("gzip could not decompress " + path);
    return text;
}

// Reads a CSV file, or a .gz of one, with PIXELS pixels and a label on each line.
inline Images load(const std::string& path) {
    const File file(std::fopen(path.c_str(), "rb"));
    if (!file) throw system_error("cannot open " + path, errno);
    const bool compressed = path.size() > 3 && path.compare(path.size() - 3, 3, ".gz") == 0;
    std::istringstream lines(compressed ? gunzip(file.get(), path) : read_all(file.get(), path));

    Images images;
    for (std::string line; std::getline(lines, line);) {
        std::replace(line.begin(), line.end(), ',', ' ');
        std::istringstream fields(line);
        int value = -1;
        for (std::size_t i = 0; i < PIXELS && fields >> value && value >= 0 && value <= BLACK; ++i) {
            images.pixels.push_back(2.0F * static_cast<float>(value) / static_cast<float>(BLACK) - 1.0F);
        }
        const bool labelled = fields >> value && value >= 0 && value < static_cast<int>(CLASSES);
        images.labels.push_back(static_cast<std::size_t>(value));
        if (!labelled || images.pixels.size() != images.size() * PIXELS || !(fields >> std::ws).eof()) {
            throw std::runtime_error(path + ", line " + std::to_string(images.size()) +
                                     ": expected 64 pixels of 0..16 and a label of 0..9");
        }
    }
    if (images.size() < 10) throw std::runtime_error(path + ": fewer than 10 images");
    return images;
}

// Copies the images that `order` names at positions begin..end-1.
inline Images gather(const Images& images, const Indices& order, std::size_t begin, std::size_t end) {
    Images chosen;
    for (std::size_t i = begin; i < end; ++i) {
        const float* image = &images.pixels[order[i] * PIXELS];
        chosen.pixels.insert(chosen.pixels.end(), image, image + PIXELS);
        chosen.labels.push_back(images.labels[order[i]]);
    }
    return chosen;
}

// ---- Network ------------------------------------------------------------------------------

// A fully connected layer. The weights (inputs x outputs) and then the biases lie in one array,
// so that the layer's gradient is one message.
struct Layer {
    std::size_t inputs, outputs;
    Floats parameters, gradient, velocity;

    Layer(std::size_t inputs_, std::size_t outputs_)
        : inputs(inputs_), outputs(outputs_), parameters((inputs_ + 1) * outputs_),
          gradient(parameters.size()), velocity(parameters.size()) {}

    // He's rule: activations keep their variance from layer to layer. The biases stay 0.
    void initialise(Random& random) {
        const float limit = std::sqrt(6.0F / static_cast<float>(inputs));
        for (std::size_t i = 0; i < inputs * outputs; ++i) parameters[i] = random.uniform(limit);
    }

    Floats forward(const Floats& input) const {
        const std::size_t images = input.size() / inputs;
        const float* biases = &parameters[inputs * outputs];
        Floats output(images * outputs);
        for (std::size_t n = 0; n < images; ++n) {
            float* out = &output[n * outputs];
            std::copy(biases, biases + outputs, out);
            for (std::size_t i = 0; i < inputs; ++i) {
                const float in = input[n * inputs + i];
                const float* weights = &parameters[i * outputs];
                for (std::size_t j = 0; j < outputs; ++j) out[j] += in * weights[j];
            }
        }
        return output;
    }

    // Sets `gradient`: the loss's by this layer's parameters, summed over the images.
    void backward_parameters(const Floats& input, const Floats& output_gradient) {
        std::fill(gradient.begin(), gradient.end(), 0.0F);
        float* biases = &gradient[inputs * outputs];
        for (std::size_t n = 0; n < input.size() / inputs; ++n) {
            const float* out = &output_gradient[n * outputs];
            for (std::size_t i = 0; i < inputs; ++i) {
                const float in = input[n * inputs + i];
                float* weights = &gradient[i * outputs];
                for (std::size_t j = 0; j < outputs; ++j) weights[j] += in * out[j];
            }
            for (std::size_t j = 0; j < outputs; ++j) biases[j] += out[j];
        }
    }

    // The loss's gradient by this layer's input.
    Floats backward_input(const Floats& output_gradient) const {
        const std::size_t images = output_gradient.size() / outputs;
        Floats input_gradient(images * inputs);
        for (std::size_t n = 0; n < images; ++n) {
            const float* out = &output_gradient[n * outputs];
            for (std::size_t i = 0; i < inputs; ++i) {
                const float* weights = &parameters[i * outputs];
                input_gradient[n * inputs + i] = std::inner_product(out, out + outputs, weights, 0.0F);
            }
        }
        return input_gradient;
    }

    // Gradient descent with momentum, along `scale` times the gradient.
    void step(float learning_rate, float scale) {
        for (std::size_t i = 0; i < parameters.size(); ++i) {
            velocity[i] = MOMENTUM * velocity[i] + scale * gradient[i];
            parameters[i] -= learning_rate * velocity[i];
        }
    }
};

inline void relu(Floats& values) {
    for (float& value : values) value = std::max(value, 0.0F);
}

// Nothing flows back through a unit that was off.
inline void relu_backward(const Floats& activations, Floats& gradient) {
    for (std::size_t i = 0; i < gradient.size(); ++i) {
        if (activations[i] <= 0.0F) gradient[i] = 0.0F;
    }
}

// Cross-entropy of the softmax of the scores, summed over the images; the scores are replaced by
// its gradient. In double, so that a curve shows training and not the rounding of its own sums.
inline double cross_entropy(Floats& scores, const Indices& labels) {
    double loss = 0;
    for (std::size_t n = 0; n < labels.size(); ++n) {
        float* score = &scores[n * CLASSES];
        const double highest = *std::max_element(score, score + CLASSES);
        double total = 0;
        for (std::size_t j = 0; j < CLASSES; ++j) total += std::exp(score[j] - highest);
        loss += std::log(total) - (score[labels[n]] - highest);
        for (std::size_t j = 0; j < CLASSES; ++j) {
            const double target = j == labels[n] ? 1 : 0;
            score[j] = static_cast<float>(std::exp(score[j] - highest) / total - target);
        }
    }
    return loss;
}

inline std::size_t count_correct(const Floats& scores, const Indices& labels) {
    std::size_t correct = 0;
    for (std::size_t n = 0; n < labels.size(); ++n) {
        const float* score = &scores[n * CLASSES];
        if (std::max_element(score, score + CLASSES) == score + labels[n]) ++correct;
    }
    return correct;
}

}  // namespace digits

#endif
