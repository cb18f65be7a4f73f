// JSON, character by character.
#include "json.h"

#include <charconv>
#include <system_error>

namespace fermi {
namespace {

bool is_digit(char character) {
    return character >= '0' && character <= '9';
}

void append_code_point(std::string& out, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | code >> 6);
        put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    }
}

}  // namespace

void JsonReader::fail(std::string_view what) const {
    throw FormatError(message("JSON: ", what, " at byte ", position_));
}

void JsonReader::white_space() {
    while (position_ < text_.size()) {
        const char character = text_[position_];
        if (character != ' ' && character != '\n' && character != '\r' && character != '\t') return;
        ++position_;
    }
}

bool JsonReader::accept(char character) {
    white_space();
    if (position_ == text_.size() || text_[position_] != character) return false;
    ++position_;
    return true;
}

void JsonReader::expect(char character) {
    if (!accept(character)) fail(message("expected '", character, "'"));
}

char JsonReader::next() {
    if (position_ == text_.size()) fail("unexpected end");
    return text_[position_++];
}

std::string JsonReader::string() {
    expect('"');
    std::string out;
    for (;;) {
        const char character = next();
        const auto byte = static_cast<unsigned char>(character);
        if (character == '"') return out;
        if (character == '\\') {
            escape(out);
        } else if (byte < 0x20) {
            fail("control character in a string");
        } else if (byte < 0x80) {
            out += character;
        } else {
            utf8(out, byte);
        }
    }
}

void JsonReader::escape(std::string& out) {
    switch (const char character = next(); character) {
        case '"':
        case '\\':
        case '/':
            out += character;
            return;
        case 'b':
            out += '\b';
            return;
        case 'f':
            out += '\f';
            return;
        case 'n':
            out += '\n';
            return;
        case 'r':
            out += '\r';
            return;
        case 't':
            out += '\t';
            return;
        case 'u':
            break;
        default:
            fail("unknown escape");
    }
    std::uint32_t code = hexadecimal();
    if (code >= 0xDC00 && code < 0xE000) fail("second half of a surrogate pair without its first");
    if (code >= 0xD800 && code < 0xDC00) {
        if (next() != '\\' || next() != 'u') fail("first half of a surrogate pair without its second");
        const std::uint32_t low = hexadecimal();
        if (low < 0xDC00 || low >= 0xE000) fail("first half of a surrogate pair without its second");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_code_point(out, code);
}

std::uint32_t JsonReader::hexadecimal() {
    if (text_.size() - position_ < 4) fail("unexpected end");
    const char* digits = text_.data() + position_;
    std::uint32_t value = 0;
    const auto [end, error] = std::from_chars(digits, digits + 4, value, 16);
    if (error != std::errc() || end != digits + 4) fail("malformed \\u escape");
    position_ += 4;
    return value;
}

/// The rest of a multi-byte character: no stray, missing or overlong bytes, no surrogates (RFC 3629).
void JsonReader::utf8(std::string& out, unsigned char lead) {
    const int rest = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    if (lead < 0xC2 || lead > 0xF4) fail("a string is not UTF-8");
    std::uint32_t code = lead & (0x3FU >> rest);
    out += static_cast<char>(lead);
    for (int i = 0; i < rest; ++i) {
        const char character = next();
        const auto byte = static_cast<unsigned char>(character);
        if ((byte & 0xC0U) != 0x80U) fail("a string is not UTF-8");
        code = code << 6 | (byte & 0x3FU);
        out += character;
    }
    const bool overlong = (rest == 2 && code < 0x800) || (rest == 3 && code < 0x10000);
    if (overlong || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) fail("a string is not UTF-8");
}

std::uint64_t JsonReader::unsigned_integer() {
    white_space();
    const char* first = text_.data() + position_;
    const char* last = text_.data() + text_.size();
    if (first == last || !is_digit(*first)) fail("expected a whole number");
    if (*first == '0' && last - first > 1 && is_digit(first[1])) fail("a number starts with 0");
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(first, last, value);
    if (error != std::errc()) fail("a number is too large");
    if (end != last && (*end == '.' || *end == 'e' || *end == 'E')) fail("expected a whole number");
    position_ += static_cast<std::size_t>(end - first);
    return value;
}

void JsonReader::skip() {
    skip(0);
}

void JsonReader::skip(int depth) {
    if (depth > max_depth) fail("nested too deeply");
    white_space();
    if (position_ == text_.size()) fail("unexpected end");
    switch (text_[position_]) {
        case '{':
            object([&](const std::string&) { skip(depth + 1); });
            return;
        case '[':
            array([&] { skip(depth + 1); });
            return;
        case '"':
            string();
            return;
        case 't':
            skip_word("true");
            return;
        case 'f':
            skip_word("false");
            return;
        case 'n':
            skip_word("null");
            return;
        default:
            skip_number();
    }
}

void JsonReader::skip_word(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) fail("unknown word");
    position_ += word.size();
}

void JsonReader::skip_digits() {
    if (position_ == text_.size() || !is_digit(text_[position_])) fail("expected a value");
    while (position_ < text_.size() && is_digit(text_[position_])) ++position_;
}

void JsonReader::skip_number() {
    const auto at = [&](char character) { return position_ < text_.size() && text_[position_] == character; };
    if (at('-')) ++position_;
    const bool zero = at('0');
    const std::size_t start = position_;
    skip_digits();
    if (zero && position_ - start > 1) fail("a number starts with 0");
    if (at('.')) {
        ++position_;
        skip_digits();
    }
    if (at('e') || at('E')) {
        ++position_;
        if (at('+') || at('-')) ++position_;
        skip_digits();
    }
}

void JsonReader::end() {
    white_space();
    if (position_ != text_.size()) fail("text after the end");
}

}  // namespace fermi
