//! Log lines for readers without a terminal. Core shows lines like that, and agents mask what they say then.

use console::strip_ansi_codes;

/// `line` without colours, without invisible characters, and without those that reorder others, because anybody may
/// write a build's output.
pub fn readable(line: &str) -> String {
    let stripped = strip_ansi_codes(line);
    stripped.chars().filter(|&c| c == '\t' || !is_hidden(c)).collect()
}

/// Control characters, line and paragraph separators, and the marks that reorder a text for the eye alone.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{61c}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_what_nobody_sees_are_left_out() {
        let line = "\u{1b}[31mred\u{1b}[0m\ta\r\u{7}b \u{1b}]8;;http://x\u{7}c\u{202e}d\u{0}";
        assert_eq!(readable(line), "red\tab cd");
    }
}
