//! Hostile files: too large, too deep, or expanding by aliases.

use std::fmt::Write as _;

use stagely_manifest::FILE_BYTES_MAX;

use super::{FULL, accepted, problems};

#[test]
fn a_file_over_the_limit_is_not_read() {
    let comment = |bytes: usize| format!("{FULL}#{}", "x".repeat(bytes - FULL.len() - 1));
    accepted(&comment(FILE_BYTES_MAX));
    assert_eq!(problems(comment(FILE_BYTES_MAX + 1)), ["1:1: the file is larger than 256 KiB"]);
}

#[test]
fn aliases_cannot_expand_exponentially() {
    let mut laughs = "a0: &a0 [lol, lol, lol]\n".to_owned();
    let mut merges = "a0: &a0 {x: lol}\n".to_owned();
    for level in 1..20 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(laughs, "a{level}: &a{level} [{items}]").unwrap();
        writeln!(merges, "a{level}: &a{level} {{<<: [{items}]}}").unwrap();
    }
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), vec!["*a"; 1000].join(", "));
    for text in [laughs, merges, long] {
        let lines = problems(text);
        assert!(lines[0].ends_with("aliases make the file larger than 1024 KiB"), "{lines:?}");
    }
}

#[test]
fn nesting_is_limited() {
    let mut aliases = "a0: &a0 x\n".to_owned();
    for level in 1..100 {
        writeln!(aliases, "a{level}: &a{level} [*a{}]", level - 1).unwrap();
    }
    for text in ["[".repeat(200_000), "- ".repeat(100_000), "{a: ".repeat(50_000), aliases] {
        let lines = problems(text);
        assert!(lines[0].ends_with("the file nests more than 32 deep"), "{lines:?}");
    }
}
