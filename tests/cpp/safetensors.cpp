// Checkpoint files: well-formed, malformed in every known way, and damaged at random.
#include "safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <fstream>
#include <random>
#include <string>

#include "temporary_folder.h"

namespace fermi {
namespace {

namespace fs = std::filesystem;

class SafetensorsFile : public ::testing::Test {
  protected:
    /// Header length, header, data.
    static std::string file_of(const std::string& header, const std::string& data) {
        std::string bytes(8, '\0');
        const std::uint64_t length = header.size();
        for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i) & 0xFF);
        return bytes + header + data;
    }

    Safetensors open(const std::string& bytes) {
        const fs::path path = folder_.path() / "model.safetensors";
        std::ofstream(path, std::ios::binary) << bytes;
        return Safetensors(path);
    }

    Safetensors open(const std::string& header, const std::string& data) { return open(file_of(header, data)); }

    /// The message with which the file is refused, the file's name aside; "" if it is not.
    std::string refusal(const std::string& bytes) {
        try {
            open(bytes);
        } catch (const FormatError& error) {
            const std::string name = (folder_.path() / "model.safetensors").string() + ": ";
            const std::string text = error.what();
            EXPECT_EQ(text.rfind(name, 0), 0U) << text;
            return text.substr(std::min(name.size(), text.size()));
        }
        return "";
    }

    std::string refusal(const std::string& header, const std::string& data) { return refusal(file_of(header, data)); }

    test::TemporaryFolder folder_;
};

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

TEST_F(SafetensorsFile, GivesViewsOfTheFile) {
    const std::string header = R"({"__metadata__":{"format":"pt"},"b":)" + entry("F32", "[2]", "[8,16]") + R"(,"a":)" +
                               entry("I64", "[]", "[0,8]") + "}  ";
    std::string data(16, '\0');
    const std::int64_t integer = -5;
    const float floats[2] = {1.5F, -2.0F};
    std::memcpy(data.data(), &integer, 8);
    std::memcpy(data.data() + 8, floats, 8);
    const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
    Tensor a;
    Tensor b;
    {
        const Safetensors file = open(padded, data);
        EXPECT_EQ(file.metadata().at("format"), "pt");
        ASSERT_EQ(file.tensors().size(), 2U);
        a = file.tensors().at("a");
        b = file.tensors().at("b");
    }
    EXPECT_EQ(a.rank(), 0);
    EXPECT_EQ(*a.data<std::int64_t>(), -5);
    EXPECT_EQ(b.data<float>()[1], -2.0F);
    EXPECT_EQ(a.storage(), b.storage());
    EXPECT_FALSE(b.writable());
}

TEST_F(SafetensorsFile, CopiesWhatIsNotAligned) {
    std::string header = R"({"a":)" + entry("F32", "[1]", "[0,4]") + "}";
    while (header.size() % 4 != 1) header += ' ';
    const float value = 2.5F;
    std::string data(4, '\0');
    std::memcpy(data.data(), &value, 4);
    const Safetensors file = open(header, data);
    EXPECT_EQ(*file.tensors().at("a").data<float>(), 2.5F);
}

TEST_F(SafetensorsFile, TakesEmptyTensorsAndNoTensors) {
    EXPECT_EQ(open("{}", "").tensors().size(), 0U);
    const Safetensors file = open(R"({"a":)" + entry("F32", "[0,5]", "[0,0]") + R"(,"b":)" +
                                      entry("U8", "[3]", "[0,3]") + R"(,"c":)" + entry("BF16", "[2,0]", "[3,3]") + "}",
                                  "abc");
    EXPECT_EQ(file.tensors().at("a").shape(), Dims({0, 5}));
    EXPECT_EQ(file.tensors().at("c").elements(), 0);
    EXPECT_EQ(file.tensors().at("b").data<char>()[2], 'c');
}

TEST_F(SafetensorsFile, IgnoresUnknownFields) {
    EXPECT_NO_THROW(open(R"({"a":{"dtype":"U8","note":[{"x":null}],"shape":[1],"data_offsets":[0,1]}})", "a"));
}

TEST_F(SafetensorsFile, RefusesWhatIsNotThere) {
    EXPECT_THROW(Safetensors(folder_.path() / "missing"), fs::filesystem_error);
    EXPECT_THROW(Safetensors(folder_.path()), fs::filesystem_error);
    const fs::path pipe = folder_.path() / "pipe";
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    EXPECT_THROW(Safetensors{pipe}, fs::filesystem_error) << "and does not wait for a writer";
}

TEST_F(SafetensorsFile, RefusesTruncatedFiles) {
    EXPECT_EQ(refusal(""), "truncated: the file has only 0 bytes");
    EXPECT_EQ(refusal("1234567"), "truncated: the file has only 7 bytes");
    EXPECT_EQ(refusal(std::string(8, '\0')), "the header does not start with '{'");
    EXPECT_EQ(refusal(std::string("\x10\0\0\0\0\0\0\0{}", 10)),
              "truncated: the header of 16 bytes lies beyond the file's 10");
    EXPECT_EQ(refusal(std::string(8, '\xFF') + "{}"), "the header is too large: 18446744073709551615 bytes");
    EXPECT_EQ(refusal(R"({"a":)" + entry("F32", "[2]", "[0,8]") + "}", "1234"),
              "tensor a: its bytes [0, 8) lie outside the data of 4 bytes");
}

TEST_F(SafetensorsFile, RefusesInconsistentLayouts) {
    EXPECT_EQ(refusal(R"({"a":)" + entry("U8", "[2]", "[0,2]") + R"(,"b":)" + entry("U8", "[2]", "[1,3]") + "}", "abc"),
              "tensor b: its bytes begin at 1, inside another tensor's, not at 2");
    EXPECT_EQ(refusal(R"({"a":)" + entry("U8", "[1]", "[0,1]") + R"(,"b":)" + entry("U8", "[1]", "[2,3]") + "}", "abc"),
              "tensor b: its bytes begin at 2, after a hole, not at 1");
    EXPECT_EQ(refusal(R"({"a":)" + entry("U8", "[1]", "[0,1]") + "}", "abc"),
              "the tensors end at byte 1 of the data, which has 3");
    EXPECT_EQ(refusal("{}", "abc"), "the tensors end at byte 0 of the data, which has 3");
    EXPECT_EQ(refusal(R"({"a":)" + entry("F32", "[2]", "[0,4]") + "}", "1234"),
              "tensor a: f32[2] takes 8 bytes, not 4");
    EXPECT_EQ(refusal(R"({"a":)" + entry("U8", "[1]", "[1,0]") + "}", "a"),
              "tensor a: its bytes [1, 0) lie outside the data of 1 bytes");
}

TEST_F(SafetensorsFile, RefusesMalformedEntries) {
    for (const std::string& header : {
             R"({"a":)" + entry("F8", "[1]", "[0,1]") + "}",
             R"({"a":)" + entry("U8", "[-1]", "[0,1]") + "}",
             R"({"a":)" + entry("U8", "[1.0]", "[0,1]") + "}",
             R"({"a":)" + entry("U8", "[9223372036854775808]", "[0,1]") + "}",
             R"({"a":)" + entry("F32", "[4611686018427387904,4]", "[0,1]") + "}",
             R"({"a":)" + entry("U8", "[1,1,1,1,1,1,1]", "[0,1]") + "}",
             R"({"a":)" + entry("U8", "[1]", "[0]") + "}",
             R"({"a":)" + entry("U8", "[1]", "[0,1,1]") + "}",
             R"({"a":)" + entry("U8", "[1]", "[0,18446744073709551616]") + "}",
             R"({"a":)" + entry("U8", "1", "[0,1]") + "}",
             std::string(R"({"a":{"dtype":"U8","shape":[1]}})"),
             std::string(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})"),
             std::string(R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})"),
             std::string(R"({"a":[]})"),
             std::string(R"({"a":null})"),
             R"({"a":)" + entry("U8", "[1]", "[0,1]") + R"(,"a":)" + entry("U8", "[1]", "[0,1]") + "}",
             R"({"a":)" + entry("U8", "[1]", "[0,1]") + R"(,"a":)" + entry("U8", "[0]", "[1,1]") + "}",
             std::string(R"({"__metadata__":{"a":1}})"),
             std::string(R"({"__metadata__":{"a":"","a":""}})"),
             std::string(R"({"__metadata__":{},"__metadata__":{}})"),
             std::string(R"({)"),
             std::string(R"({} x)"),
             std::string("{\"\xFF\":1}"),
         }) {
        EXPECT_NE(refusal(header, "a"), "") << header;
    }
}

/// Flips, cuts, swaps and repeats bytes of a good file: every result opens or is refused, and what opens can be read.
TEST_F(SafetensorsFile, SurvivesDamage) {
    const std::string good =
        file_of(R"({"__metadata__":{"format":"pt"},"first":)" + entry("F32", "[2,2]", "[0,16]") + R"(,"second":)" +
                    entry("BF16", "[4]", "[16,24]") + R"(,"third":)" + entry("I64", "[0]", "[24,24]") + "}",
                std::string(24, 'x'));
    const std::string likely = "0123456789[]{}\",:-.eE \\";
    std::mt19937 random(7);
    int opened = 0;
    for (int round = 0; round < 1500; ++round) {
        std::string bytes = good;
        for (unsigned change = 0; change <= random() % 3; ++change) {
            const std::size_t at = random() % bytes.size();
            switch (random() % 6) {
                case 0:
                    bytes[at] = static_cast<char>(random());
                    break;
                case 1:
                    bytes[at] = likely[random() % likely.size()];
                    break;
                case 2:
                    bytes[random() % 8] = static_cast<char>(random());
                    break;
                case 3:
                    bytes.resize(std::max<std::size_t>(at, 1));
                    break;
                case 4:
                    bytes.insert(at, bytes.substr(at, random() % 20));
                    break;
                default:
                    bytes.erase(at, random() % 20);
                    if (bytes.empty()) bytes = "x";
            }
        }
        try {
            const Safetensors file = open(bytes);
            ++opened;
            unsigned sum = 0;
            for (const auto& [name, tensor] : file.tensors()) {
                for (std::size_t i = 0; i < tensor.bytes(); ++i)
                    sum += std::to_integer<unsigned>(tensor.bytes_data()[i]);
            }
            EXPECT_LE(sum, 255U * bytes.size());
        } catch (const FormatError&) {
            continue;
        }
    }
    EXPECT_GT(opened, 0);
}

}  // namespace
}  // namespace fermi
