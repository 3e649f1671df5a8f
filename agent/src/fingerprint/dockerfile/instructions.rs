//! Splits the text of a Dockerfile into instructions, with their continuation lines and here-documents.
//!
//! Source: `BuildKit`'s `frontend/dockerfile/parser/{parser,directives}.go`.

use std::sync::LazyLock;

use regex::Regex;

use super::words::{flags, shell_words, unquoted};

/// A word that begins a here-document: `<<EOF`, `<<-"EOF"`, `3<<EOF`, but not `<<<`.
static HEREDOC: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\d*<<(-?)([^<]+)$").expect("a fixed pattern"));

static DIRECTIVE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$").expect("a fixed pattern")
});

/// One instruction, with its continuation lines joined.
#[derive(Debug)]
pub(super) struct Instruction {
    /// In upper case.
    pub(super) keyword: String,
    /// The arguments, with their here-documents.
    pub(super) text: String,
}

impl Instruction {
    fn parse(line: &str) -> Self {
        let line = line.trim();
        let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        Self { keyword: keyword.to_ascii_uppercase(), text: rest.trim().to_owned() }
    }

    /// The here-documents that follow the instruction.
    fn heredocs(&self) -> Vec<Heredoc> {
        if self.keyword == "ONBUILD" {
            return Self::parse(&self.text).heredocs();
        }
        let may_have_some = matches!(self.keyword.as_str(), "RUN" | "COPY" | "ADD");
        if !may_have_some || !self.text.contains("<<") || is_json_list(flags(&self.text).1) {
            return Vec::new();
        }
        let words = shell_words(&self.text).unwrap_or_default();
        words.into_iter().filter_map(Heredoc::parse).collect()
    }
}

fn is_json_list(text: &str) -> bool {
    text.starts_with('[') && serde_json::from_str::<Vec<String>>(text).is_ok()
}

struct Heredoc {
    strips_tabs: bool,
    end: String,
}

impl Heredoc {
    fn parse(word: &str) -> Option<Self> {
        let heredoc = HEREDOC.captures(word)?;
        Some(Self { strips_tabs: !heredoc[1].is_empty(), end: unquoted(&heredoc[2]) })
    }

    fn is_end(&self, line: &str) -> bool {
        let line = line.trim_end_matches('\r');
        self.end == if self.strips_tabs { line.trim_start_matches('\t') } else { line }
    }
}

pub(super) fn instructions(text: &str) -> Vec<Instruction> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_character(text);
    let lines: Vec<&str> = text.lines().collect();
    let (mut instructions, mut rest) = (Vec::new(), &lines[..]);
    let mut joined = String::new();
    while let Some((line, following)) = rest.split_first() {
        rest = following;
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if let Some(continued) = continued(line, escape) {
            joined.push_str(continued);
            if !rest.is_empty() {
                continue;
            }
        } else {
            joined.push_str(line);
        }
        let mut instruction = Instruction::parse(&std::mem::take(&mut joined));
        for heredoc in instruction.heredocs() {
            // Without its end `BuildKit` fails.
            let Some(end) = rest.iter().position(|line| heredoc.is_end(line)) else { break };
            let (document, following) = rest.split_at(end + 1);
            for line in document {
                instruction.text.push('\n');
                instruction.text.push_str(line);
            }
            rest = following;
        }
        instructions.push(instruction);
    }
    instructions
}

/// `line` without the escape character at its end. `None`: no line continues it. The second of two escape characters
/// is an ordinary one.
fn continued(line: &str, escape: char) -> Option<&str> {
    let continued = line.trim_end().strip_suffix(escape)?;
    (!continued.ends_with(escape)).then_some(continued)
}

/// The escape character. `# escape=` among the first lines changes it, for Windows paths.
fn escape_character(text: &str) -> char {
    let mut directives = text.lines().map_while(|line| DIRECTIVE.captures(line.trim_start()));
    let escape = directives.find(|directive| directive[1].eq_ignore_ascii_case("escape"));
    if escape.is_some_and(|escape| &escape[2] == "`") { '`' } else { '\\' }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keywords(text: &str) -> Vec<String> {
        instructions(text).into_iter().map(|instruction| instruction.keyword).collect()
    }

    #[test]
    fn here_documents_are_no_instructions() {
        for (instruction, end) in [
            ("RUN <<EOF-1", "EOF-1"),
            ("RUN <<\"MY EOF\" cat", "MY EOF"),
            ("RUN <<1EOF", "1EOF"),
            ("RUN <<-'E.O.F'", "\t\tE.O.F"),
            ("RUN 3<<EOF cat <&3", "EOF"),
            ("RUN <<E\\ F", "E F"),
            ("RUN <<E\"O\"F", "EOF"),
            ("RUN --mount=type=cache,target=/c <<EOF", "EOF\r"),
            ("ONBUILD RUN <<EOF", "EOF"),
            ("onbuild copy <<EOF /a", "EOF"),
            ("ADD <<EOF <<EOF-2 /a/", "EOF\nFROM c AS c\nEOF-2"),
        ] {
            let text = format!("{instruction}\nFROM b AS base\n{end}\nUSER 1\n");
            assert_eq!(keywords(&text)[1..], ["USER"], "{instruction}");
        }
    }

    #[test]
    fn other_words_begin_no_here_document() {
        for instruction in [
            "RUN cat <<<EOF",
            "RUN cat<<EOF",
            "RUN echo '<<EOF' \"a <<EOF\"",
            "RUN [\"cat\", \"<<EOF\"]",
            "COPY --chown=1 [\"<<EOF\", \"/a\"]",
            "LABEL a=<<EOF <<EOF",
            "RUN echo it's <<EOF",
            "RUN cat << EOF",
            "RUN <<UNTERMINATED",
            "RUN true \\\\",
        ] {
            let text = format!("{instruction}\nFROM b\nEOF\n");
            assert_eq!(keywords(&text)[1..], ["FROM", "EOF"], "{instruction}");
        }
    }

    #[test]
    fn a_byte_order_mark_hides_neither_an_instruction_nor_a_directive() {
        assert_eq!(keywords("\u{feff}FROM a\nUSER 1"), ["FROM", "USER"]);
        let text = "\u{feff}# syntax = docker/dockerfile:1\n# Escape = `\nFROM a\nRUN dir c:\\\nRUN b `\n c\n";
        assert_eq!(keywords(text), ["FROM", "RUN", "RUN"]);
        // The second line is a comment, so the third is one as well.
        let text = "# syntax=docker/dockerfile:1\n# why a=b\n# escape=`\nRUN a \\\n b";
        assert_eq!(keywords(text), ["RUN"]);
    }

    #[test]
    fn a_continued_line_may_be_the_last() {
        assert_eq!(keywords("FROM a\nRUN b \\"), ["FROM", "RUN"]);
    }
}
