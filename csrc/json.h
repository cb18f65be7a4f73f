// A strict reader of JSON (RFC 8259) for the headers of checkpoint files, which come from anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "error.h"
#include "export.h"

namespace fermi {

/// Reads one value after the other from the text; the caller says what it expects next. Throws FormatError with the
/// place. Strings are valid UTF-8, escapes resolved; nesting is bounded, so the stack is too.
class FERMI_API JsonReader {
  public:
    static constexpr int max_depth = 32;

    explicit JsonReader(std::string_view text) : text_(text) {}

    /// Calls member(key) for each member; it reads the member's value.
    template <class Member>
    void object(Member&& member) {
        expect('{');
        if (accept('}')) return;
        do {
            const std::string key = string();
            expect(':');
            member(key);
        } while (accept(','));
        expect('}');
    }

    /// Calls element() for each element; it reads the element.
    template <class Element>
    void array(Element&& element) {
        expect('[');
        if (accept(']')) return;
        do {
            element();
        } while (accept(','));
        expect(']');
    }

    std::string string();
    /// A number without sign, fraction or exponent.
    std::uint64_t unsigned_integer();
    /// Reads any value and forgets it.
    void skip();
    /// Nothing but white space is left.
    void end();

  private:
    void skip(int depth);
    void skip_number();
    void skip_digits();
    void skip_word(std::string_view word);
    void white_space();
    bool accept(char character);
    void expect(char character);
    char next();
    std::uint32_t hexadecimal();
    void escape(std::string& out);
    void utf8(std::string& out, unsigned char lead);
    [[noreturn]] void fail(std::string_view what) const;

    std::string_view text_;
    std::size_t position_ = 0;
};

}  // namespace fermi
