//! Other people's words in GitHub's Markdown, so that they stay words: no markup, no HTML, no mention, no
//! link, and no row of a table that they were not meant for.
//!
//! Source: GitHub Flavored Markdown, 0.29.

use crate::core::logs::{is_hidden, readable};

/// Stands behind `@` and `#`: GitHub looks for mentions and references after it has read all entities, and
/// this one is not seen.
const WORD_JOINER: char = '\u{2060}';

/// Words with `code` in them, of at most `chars_max` characters. Only between backticks that come in pairs
/// is code; all else is plain.
pub(super) fn inline(words: &str, chars_max: usize) -> String {
    let words = cut(&one_line(words), chars_max);
    if words.matches('`').count() % 2 == 1 || words.contains("``") {
        return plain(&words);
    }
    let parts = words.split('`').enumerate();
    parts.map(|(index, part)| if index % 2 == 1 { span(part) } else { plain(part) }).collect()
}

/// `words` as code, of at most `chars_max` characters.
pub(super) fn code(words: &str, chars_max: usize) -> String {
    span(&cut(&one_line(words), chars_max))
}

/// `lines` as a block of code, of at most about `bytes_max` bytes: what does not fit is left out from the
/// front, since the end of a log says more.
pub(super) fn last_lines<'a>(
    lines: impl DoubleEndedIterator<Item = &'a str>,
    bytes_max: usize,
) -> String {
    let (mut kept, mut bytes, mut is_cut) = (Vec::new(), 0, false);
    for line in lines.rev() {
        let line = cut(&readable(line), LINE_CHARS_MAX);
        bytes += line.len() + 1;
        if bytes > bytes_max {
            is_cut = true;
            break;
        }
        kept.push(line);
    }
    if is_cut {
        kept.push("… (what came before is in the log)".to_owned());
    }
    kept.reverse();
    fenced(&kept)
}

/// `lines` as a block of code, of at most about `bytes_max` bytes: what does not fit is left out at the end.
pub(super) fn first_lines<'a>(lines: impl Iterator<Item = &'a str>, bytes_max: usize) -> String {
    let (mut kept, mut bytes) = (Vec::new(), 0);
    for line in lines {
        let line = cut(&readable(line), LINE_CHARS_MAX);
        bytes += line.len() + 1;
        if bytes > bytes_max {
            kept.push("… (the rest is on the run's page)".to_owned());
            break;
        }
        kept.push(line);
    }
    fenced(&kept)
}

/// The longest line of a block, in characters.
const LINE_CHARS_MAX: usize = 300;

fn fenced(lines: &[String]) -> String {
    let longest = lines.iter().map(|line| longest_run(line)).max().unwrap_or(0);
    let fence = "`".repeat((longest + 1).max(3));
    format!("{fence}text\n{}\n{fence}\n", lines.join("\n"))
}

/// The first `chars_max` characters, marked where something is missing.
pub(super) fn cut(words: &str, chars_max: usize) -> String {
    if words.chars().count() <= chars_max {
        return words.to_owned();
    }
    let kept: String = words.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// All of it in one line, with single spaces.
pub(super) fn one_line(words: &str) -> String {
    let spaced = words.replace(char::is_whitespace, " ");
    let shown: String = readable(&spaced).chars().filter(|&c| !is_hidden(c)).collect();
    shown.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn plain(words: &str) -> String {
    let mut escaped = String::with_capacity(words.len());
    let mut before = ' ';
    for c in words.chars() {
        match c {
            // Entities never are markup. `:` and `www.` begin links.
            '&' | '<' | '>' | '*' | '_' | '~' | '[' | ']' | '!' | '\\' | '`' | '|' | ':' | '$' => {
                escaped.push_str(&entity(c));
            }
            '.' if before.eq_ignore_ascii_case(&'w') => escaped.push_str(&entity(c)),
            '@' | '#' => {
                escaped.push(c);
                escaped.push(WORD_JOINER);
            }
            _ => escaped.push(c),
        }
        before = c;
    }
    escaped
}

fn entity(c: char) -> String {
    format!("&#{};", u32::from(c))
}

/// Nothing within a code span is markup, a mention or a link.
fn span(words: &str) -> String {
    if words.trim().is_empty() {
        return String::new();
    }
    // A bar ends a cell of a table even in here, and no way to escape it holds behind a backslash.
    let words = words.replace('|', "¦");
    let fence = "`".repeat(longest_run(&words) + 1);
    let pad = if words.starts_with('`') || words.ends_with('`') { " " } else { "" };
    format!("{fence}{pad}{words}{pad}{fence}")
}

/// The longest run of backticks.
fn longest_run(words: &str) -> usize {
    words.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let hostile = "a|b <img src=x> @org/team #7 **x** [y](http://z) www.z.org\n\n# h \u{202e}";
        assert_eq!(
            inline(hostile, 200),
            "a&#124;b &#60;img src=x&#62; @\u{2060}org/team #\u{2060}7 &#42;&#42;x&#42;&#42; \
             &#91;y&#93;(http&#58;//z) www&#46;z.org #\u{2060} h"
        );
        assert_eq!(
            inline("`/stagely cancel` by @x: done", 200),
            "`/stagely cancel` by @\u{2060}x&#58; done"
        );
        assert_eq!(inline("a ` b", 200), "a &#96; b");
        assert_eq!(inline("abcdef", 4), "abc…");
    }

    #[test]
    fn code_is_not_left_early() {
        assert_eq!(code("a`b", 9), "``a`b``");
        assert_eq!(code("`a``", 9), "``` `a`` ```");
        assert_eq!(code("a\\|b\nc", 9), "`a\\¦b c`");
        assert_eq!(code(" \n", 9), "");
        let block = last_lines(["x", "````", "\u{1b}[1my\u{1b}[0m"].into_iter(), 100);
        assert_eq!(block, "`````text\nx\n````\ny\n`````\n");
    }

    #[test]
    fn of_a_log_the_end_is_kept_and_of_problems_the_beginning() {
        let lines = ["one", "two", "three"];
        let end = "```text\n… (what came before is in the log)\ntwo\nthree\n```\n";
        assert_eq!(last_lines(lines.into_iter(), 10), end);
        let beginning = "```text\none\ntwo\n… (the rest is on the run's page)\n```\n";
        assert_eq!(first_lines(lines.into_iter(), 10), beginning);
    }
}
