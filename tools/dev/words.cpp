// Prints where llama.cpp's pre-tokenizers cut texts into words; compiled and run by tokens.py with llama.cpp's unicode.cpp.
//
// standard input: per line the number of bytes of a part and, after the line, the part: the number of expressions of a pre-tokenizer, the
// expressions, the number of texts, the texts. Standard output: per text the ends of its words in bytes.

#include "unicode.h"

#include <iostream>
#include <string>
#include <vector>

static std::string part() {
    size_t size = 0;
    std::cin >> size;
    std::cin.get();
    std::string bytes(size, '\0');
    std::cin.read(bytes.data(), static_cast<std::streamsize>(size));
    return bytes;
}

static std::vector<std::string> parts() {
    std::vector<std::string> list(std::stoul(part()));
    for (auto & item : list) {
        item = part();
    }
    return list;
}

int main() {
    const auto expressions = parts();
    for (const auto & text : parts()) {
        size_t end = 0;
        for (const auto & word : unicode_regex_split(text, expressions, false)) {
            if (!word.empty()) {
                end += word.size();
                std::cout << (end == word.size() ? "" : " ") << end;
            }
        }
        std::cout << "\n";
    }
}
