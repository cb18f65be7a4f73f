// The reader of checkpoint headers.
#include "json.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace fermi {
namespace {

std::string read_string(std::string_view text) {
    JsonReader reader(text);
    std::string value = reader.string();
    reader.end();
    return value;
}

std::uint64_t read_integer(std::string_view text) {
    JsonReader reader(text);
    const std::uint64_t value = reader.unsigned_integer();
    reader.end();
    return value;
}

void skip(std::string_view text) {
    JsonReader reader(text);
    reader.skip();
    reader.end();
}

TEST(Json, ReadsObjectsAndArrays) {
    JsonReader reader(" { \"a\" : [ 1 , 2 ] , \"b\" : [] , \"c\" : {} } ");
    std::vector<std::string> keys;
    std::vector<std::uint64_t> numbers;
    reader.object([&](const std::string& key) {
        keys.push_back(key);
        if (key == "c") {
            reader.object([](const std::string&) {});
        } else {
            reader.array([&] { numbers.push_back(reader.unsigned_integer()); });
        }
    });
    reader.end();
    EXPECT_EQ(keys, (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_EQ(numbers, (std::vector<std::uint64_t>{1, 2}));
}

TEST(Json, ResolvesEscapes) {
    EXPECT_EQ(read_string(R"("\"\\\/\b\f\n\r\t")"), "\"\\/\b\f\n\r\t");
    EXPECT_EQ(read_string(R"("\u0041\u00e9\u20AC")"), "Aé€");
    EXPECT_EQ(read_string(R"("\uD83D\uDE00")"), "😀");
    EXPECT_EQ(read_string("\"é€😀\""), "é€😀");
}

TEST(Json, RefusesMalformedStrings) {
    for (const std::string text : {"",
                                   "\"",
                                   "\"a",
                                   "\"\\",
                                   "\"\\x\"",
                                   "\"\\u12\"",
                                   "\"\\u12g4\"",
                                   "\"\\u+123\"",
                                   "\"\\uD800\"",
                                   "\"\\uD800\\n\"",
                                   "\"\\uD800\\u0041\"",
                                   "\"\\uDC00\"",
                                   "\"a\nb\"",
                                   "\"\x80\"",
                                   "\"\xC3\"",
                                   "\"\xC0\x80\"",
                                   "\"\xE0\x80\x80\"",
                                   "\"\xED\xA0\x80\"",
                                   "\"\xF0\x80\x80\x80\"",
                                   "\"\xF4\x90\x80\x80\"",
                                   "\"\xFF\"",
                                   "a",
                                   "\"a\" b"}) {
        EXPECT_THROW(read_string(text), FormatError) << text;
    }
}

TEST(Json, ReadsWholeNumbersOnly) {
    EXPECT_EQ(read_integer("0"), 0U);
    EXPECT_EQ(read_integer(" 18446744073709551615 "), UINT64_MAX);
    for (const char* text : {"", "-1", "+1", "01", "1.0", "1e3", "1E3", "18446744073709551616", "x", "1x", "\"1\""}) {
        EXPECT_THROW(read_integer(text), FormatError) << text;
    }
}

TEST(Json, SkipsAnyValue) {
    for (const char* text :
         {"{}", "[]", "[1, -2.5e+10, 0.5, 1E-3, true, false, null, \"a\"]", "{\"a\": {\"b\": []}}"}) {
        EXPECT_NO_THROW(skip(text)) << text;
    }
    for (const char* text : {"", "{", "[1,]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{1:2}", "-", "1.", ".5", "1e", "01",
                             "tru", "nul", "[1 2]", "[}", "truefalse"}) {
        EXPECT_THROW(skip(text), FormatError) << text;
    }
}

TEST(Json, BoundsNesting) {
    const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
    EXPECT_NO_THROW(skip(nested(JsonReader::max_depth)));
    EXPECT_THROW(skip(nested(JsonReader::max_depth + 2)), FormatError);
    EXPECT_THROW(skip(std::string(10'000'000, '[')), FormatError);
}

TEST(Json, SurvivesNoise) {
    std::mt19937 random(1);
    const std::string alphabet = "{}[]\",:\\u0123456789abdeflnrstu-+.eE \x80\xC3\xF0";
    for (int round = 0; round < 20000; ++round) {
        std::string text(random() % 40, ' ');
        for (char& character : text) character = alphabet[random() % alphabet.size()];
        try {
            skip(text);
        } catch (const FormatError&) {
            continue;
        }
    }
}

}  // namespace
}  // namespace fermi
