//! Escapes foreign text for GitHub's Markdown: it makes no markup, no HTML, no mention, no link, and no cell of
//! a table.
//!
//! Source: GitHub Flavored Markdown, 0.29.

use stagely_protocol::text::{is_hidden, readable};

/// An invisible character behind `@` and `#`. Entities do not prevent mentions and references, because GitHub
/// looks for them after it has decoded entities.
const WORD_JOINER: char = '\u{2060}';

/// Escapes `words` of at most `chars_max` characters. Text between a pair of backticks becomes code.
pub(super) fn inline(words: &str, chars_max: usize) -> String {
    let words = cut(&one_line(words), chars_max);
    if words.matches('`').count() % 2 == 1 || words.contains("``") {
        return plain(&words);
    }
    let parts = words.split('`').enumerate();
    parts.map(|(index, part)| if index % 2 == 1 { span(part) } else { plain(part) }).collect()
}

/// Makes `words` code of at most `chars_max` characters.
pub(super) fn code(words: &str, chars_max: usize) -> String {
    span(&cut(&one_line(words), chars_max))
}

/// Makes `lines` a block of code of about `bytes_max` bytes at most. The first lines are dropped, because the end
/// of a log says more.
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

/// Makes `lines` a block of code of about `bytes_max` bytes at most. The last lines are dropped.
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

/// The longest line of a block.
const LINE_CHARS_MAX: usize = 300;

fn fenced(lines: &[String]) -> String {
    let longest = lines.iter().map(|line| longest_run(line)).max().unwrap_or(0);
    let fence = "`".repeat((longest + 1).max(3));
    format!("{fence}text\n{}\n{fence}\n", lines.join("\n"))
}

/// The first `chars_max` characters, with `…` if some are missing.
pub(super) fn cut(words: &str, chars_max: usize) -> String {
    if words.chars().count() <= chars_max {
        return words.to_owned();
    }
    let kept: String = words.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// The words in one line, with single spaces.
pub(super) fn one_line(words: &str) -> String {
    let spaced = words.replace(char::is_whitespace, " ");
    let visible: String = readable(&spaced).chars().filter(|&c| !is_hidden(c)).collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A picture at `url`, which has no brackets and spaces, with `words` in its place where it cannot be seen.
pub(super) fn picture(words: &str, url: &str, chars_max: usize) -> String {
    format!("![{}]({url})", plain(&cut(&one_line(words), chars_max)))
}

fn plain(words: &str) -> String {
    let mut escaped = String::with_capacity(words.len());
    let mut before = ' ';
    for c in words.chars() {
        match c {
            // Entities are never markup. `:` and `www.` begin links.
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

/// Makes a code span, in which nothing is markup, a mention or a link.
fn span(words: &str) -> String {
    if words.trim().is_empty() {
        return String::new();
    }
    // A bar ends the cell of a table even within code, and no escape works behind a backslash.
    let words = words.replace('|', "¦");
    let fence = "`".repeat(longest_run(&words) + 1);
    let pad = if words.starts_with('`') || words.ends_with('`') { " " } else { "" };
    format!("{fence}{pad}{words}{pad}{fence}")
}

fn longest_run(words: &str) -> usize {
    words.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_makes_no_markup() {
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
    fn backticks_do_not_end_code() {
        assert_eq!(code("a`b", 9), "``a`b``");
        assert_eq!(code("`a``", 9), "``` `a`` ```");
        assert_eq!(code("a\\|b\nc", 9), "`a\\¦b c`");
        assert_eq!(code(" \n", 9), "");
        let block = last_lines(["x", "````", "\u{1b}[1my\u{1b}[0m"].into_iter(), 100);
        assert_eq!(block, "`````text\nx\n````\ny\n`````\n");
    }

    #[test]
    fn a_log_keeps_its_end_and_a_list_of_mistakes_its_beginning() {
        let lines = ["one", "two", "three"];
        let end = "```text\n… (what came before is in the log)\ntwo\nthree\n```\n";
        assert_eq!(last_lines(lines.into_iter(), 10), end);
        let beginning = "```text\none\ntwo\n… (the rest is on the run's page)\n```\n";
        assert_eq!(first_lines(lines.into_iter(), 10), beginning);
    }
}
