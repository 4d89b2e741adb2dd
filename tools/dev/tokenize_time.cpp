// Times llama.cpp's llama_tokenize: tokenize_time VOCABULARY.gguf TEXT. What benches/tokenize.rs is compared with.
//
// Links with llama.cpp's static libraries:
//   g++ -O2 -std=c++17 -I llama.cpp/include -I llama.cpp/ggml/include tools/dev/tokenize_time.cpp build/src/libllama.a
//       build/ggml/src/libggml.a build/ggml/src/libggml-cpu.a build/ggml/src/libggml-base.a -fopenmp -o tokenize_time

#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

// Time of this thread on a core, so that others on a busy machine are not counted.
static double seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: tokenize_time VOCABULARY.gguf TEXT\n");
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    auto params = llama_model_default_params();
    params.vocab_only = true;
    const auto * model = llama_model_load_from_file(argv[1], params);
    if (model == nullptr) {
        std::fprintf(stderr, "%s cannot be loaded\n", argv[1]);
        return 1;
    }
    const auto * vocab = llama_model_get_vocab(model);
    std::ifstream file(argv[2], std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    std::vector<llama_token> ids(text.size() + 8);
    std::vector<double> times;
    int n_ids = 0;
    for (int run = 0; run < 9; run++) {
        const double start = seconds();
        n_ids = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), ids.data(), static_cast<int>(ids.size()), false, false);
        times.push_back(seconds() - start);
    }
    std::sort(times.begin(), times.end());
    std::printf("%d ids, median %.4f s\n", n_ids, times[times.size() / 2]);
}
