//! Random bytes and damaged files.

use proptest::prelude::*;
use stagely_manifest::parse;

use super::FULL;

proptest! {
    #[test]
    fn bytes_of_any_kind_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse("", &bytes);
    }

    #[test]
    fn yaml_punctuation_of_any_kind_is_read_or_refused(text in "[-a:{}\\[\\]&*!|>'\"%@`,?#~<$ \t\n0.]{0,80}") {
        let _ = parse("", text.as_bytes());
        let _ = parse("", format!("builds: {{a: {{context: ., build_args: {{A: {text}}}}}}}").as_bytes());
        let _ = parse("", format!("preview: {{compose: c, endpoints: {text}, {text}}}").as_bytes());
    }

    /// Pieces of a valid file in another order, with anchors, aliases and other signs of YAML between them.
    #[test]
    fn a_file_of_pieces_is_read_or_refused(
        pieces in prop::collection::vec(
            (0..FULL.len(), 0..120_usize, "(&a |\\*a|<<: \\*a\n|- |: |\n  |\\[|\\{|'|\"|!!binary |\\|\n|%|\\? )?"), 1..8,
        ),
    ) {
        let mut text = String::new();
        for (at, length, sign) in pieces {
            let at = FULL.floor_char_boundary(at);
            text += &FULL[at..FULL.floor_char_boundary((at + length).min(FULL.len()))];
            text += &sign;
        }
        let _ = parse("stagely.yaml", text.as_bytes());
    }

    /// Each problem of a damaged file is one line, and its position is inside the file.
    #[test]
    fn a_damaged_file_gives_problems_with_a_position(
        at in 0..FULL.len(), length in 0..20_usize, insert in "[a-z:{}\\[\\]\"'\n\t\u{e9}\u{202e} -]{0,5}",
    ) {
        let mut text = FULL.to_owned();
        text.replace_range(at..(at + length).min(FULL.len()), &insert);
        if let Err(problems) = parse("stagely.yaml", text.as_bytes()) {
            prop_assert!(!problems.problems.is_empty());
            prop_assert_eq!(problems.to_string().lines().count(), problems.problems.len());
            for problem in &problems.problems {
                prop_assert!(problem.line >= 1 && problem.line <= text.split('\n').count());
                prop_assert!(problem.column >= 1);
                prop_assert!(!problem.message.is_empty());
                prop_assert!(!problem.message.chars().any(char::is_control));
            }
        }
    }
}
