//! Forms of secrets, secrets in pieces, and text without any.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use proptest::prelude::*;

use super::*;

fn masker(secrets: &[&str]) -> Masker {
    let mut builder = MaskerBuilder::default();
    for secret in secrets {
        builder.credential(secret);
    }
    builder.build().unwrap()
}

fn in_pieces(masker: &Masker, text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(text.len());
    let (mut stream, mut output, mut from) = (masker.stream(), Vec::new(), 0);
    for cut in cuts {
        stream.push(&text[from..cut], &mut output);
        from = cut;
    }
    stream.finish(&mut output);
    output
}

#[test]
fn forms_of_a_secret_are_masked() {
    let secret = "p@ss w\"rd/ü+1234";
    let masker = masker(&[secret]);
    let json = serde_json::to_string(secret).unwrap();
    for text in [secret, &json, "p%40ss%20w%22rd%2F%C3%BC%2B1234", "p%40ss+w%22rd%2F%C3%BC%2B1234"]
    {
        assert_eq!(masker.mask(&format!("a {text} b")).replace('"', ""), "a *** b");
    }
    for before in ["", "x", "xy", "x-access-token:"] {
        for engine in [STANDARD, URL_SAFE] {
            let text = engine.encode(format!("{before}{secret}!"));
            let output = masker.mask(&text);
            assert!(output.contains(MASK) && output.len() < before.len() * 2 + 14, "{output}");
        }
    }
}

#[test]
fn other_spellings_of_a_secret_are_masked() {
    let secret = "Pa$s'w\"r&d/\u{fc}!";
    let masker = masker(&[secret]);
    let [upper, hex] = hex_forms(secret).map(|hex| String::from_utf8(hex).unwrap());
    for text in [
        "PA$S'W\"R&D/\u{dc}!",
        "pa$s'w\"r&d/\u{fc}!",
        // Shells: between single quotes, `shlex.quote`, `printf %q`, between double quotes.
        "Pa$s'\\''w\"r&d/\u{fc}!",
        "Pa$s'\"'\"'w\"r&d/\u{fc}!",
        "Pa\\$s\\'w\\\"r\\&d/\u{fc}\\!",
        "Pa\\$s'w\\\"r&d/\u{fc}!",
        // JSON of Go, of Python, and with escaped slashes.
        "Pa$s'w\\\"r\\u0026d/\u{fc}!",
        "Pa$s'w\\\"r&d/\\u00fc!",
        "Pa$s'w\\\"r&d\\/\u{fc}!",
        // URLs: the user information of Go, JavaScript, Python.
        "Pa$s%27w%22r&d%2F%C3%BC%21",
        "Pa%24s'w%22r%26d%2F%C3%BC!",
        "Pa%24s%27w%22r%26d/%C3%BC%21",
        &hex,
        &upper,
        "506124732777227226642fc3bc21",
    ] {
        assert_eq!(masker.mask(&format!("https://user:{text}@host")), "https://user:***@host");
    }
}

#[test]
fn the_password_of_a_url_in_any_build_argument_is_masked() {
    let mut secrets = MaskerBuilder::default();
    secrets.build_arg("DATABASE_URL", "postgres://app:se%40cret@db.example/app");
    secrets.build_arg("PROXY", "http://proxy.example:3128");
    let masker = secrets.build().unwrap();
    let text = "se@cret se%40cret db.example proxy.example app";
    assert_eq!(masker.mask(text), "*** *** db.example proxy.example app");
}

#[test]
fn a_short_password_of_a_url_or_one_like_the_user_stays() {
    let mut secrets = MaskerBuilder::default();
    secrets.build_arg("DATABASE_URL", "postgres://postgres:postgres@db/app");
    secrets.build_arg("CACHE_URL", "redis://cache:redis@redis:6379");
    let text = "FROM postgres:16, FROM redis:7";
    assert_eq!(secrets.build().unwrap().mask(text), text);
}

#[test]
fn the_password_of_a_proxy_is_masked() {
    let mut secrets = MaskerBuilder::default();
    secrets.proxy("http://me:se%40cret@proxy:3128");
    secrets.proxy("me:pass@proxy:3128");
    secrets.proxy("proxy:3128");
    secrets.proxy("localhost,127.0.0.0/8");
    let text = "se@cret se%40cret pass me proxy";
    assert_eq!(secrets.build().unwrap().mask(text), "*** *** *** me proxy");
}

#[test]
fn a_secret_in_lines_of_four_characters_or_more_is_masked() {
    let secret = "correct-horse-battery";
    let masker = masker(&[secret]);
    let [_, hex] = hex_forms(secret).map(|hex| String::from_utf8(hex).unwrap());
    for (secret, line_break) in [(secret, "\n"), (secret, "\r\n"), (&hex, "\n")] {
        for (width, before) in (4..30).flat_map(|width| (0..width).map(move |n| (width, n))) {
            let text = format!("{}{secret}...", "~".repeat(before));
            let lines: Vec<_> = text.as_bytes().chunks(width).collect();
            let output =
                in_pieces(&masker, &lines.join(line_break.as_bytes()), &[7, 11, 17, 18, 30]);
            let output = String::from_utf8(output).unwrap();
            let shown: String = output.split_whitespace().collect();
            assert!(shown.contains(MASK), "{width} {before}: {output}");
            for piece in secret.as_bytes().windows(LINE_END_BYTES_MIN) {
                let piece = std::str::from_utf8(piece).unwrap();
                assert!(!shown.contains(piece), "{width} {before}: {output}");
            }
        }
    }
}

#[test]
fn lines_that_a_secret_does_not_go_on_with_stay() {
    let masker = masker(&["correct-horse-battery"]);
    let text = "a correct-hor\n\nse-battery\ncorrect\nhorse\ncorr\n";
    let output = in_pieces(&masker, text.as_bytes(), &[13, 14, 15, 30]);
    assert_eq!(
        String::from_utf8(output).unwrap(),
        "a correct-hor\n\nse-battery\ncorrect\nhorse\ncorr\n"
    );
    // Nothing is held back for a line that ends otherwise.
    let mut output = Vec::new();
    masker.stream().push(b"a line\ncorrect horse\n", &mut output);
    assert_eq!(output, b"a line\ncorrect horse\n");
}

#[test]
fn base64_in_lines_is_masked_wherever_a_line_ends() {
    for length in [8, 12, 20, 30, 40, 60, 90] {
        let secret: String = (0..length).map(|byte| char::from(33 + byte)).collect();
        let masker = masker(&[&secret]);
        for (width, before) in [64, 76].into_iter().flat_map(|w| (0..w).map(move |b| (w, b))) {
            let text = format!("{}{secret}...", "~".repeat(before));
            let encoded = STANDARD.encode(text);
            let lines: Vec<_> = encoded.as_bytes().chunks(width).collect();
            let output = masker.mask(std::str::from_utf8(&lines.join(&b'\n')).unwrap());
            let forms = base64_forms(secret.as_bytes(), before % 3);
            for piece in forms[0].windows(FRAGMENT_BYTES_MIN) {
                let piece = std::str::from_utf8(piece).unwrap();
                assert!(!output.contains(piece), "{length} {width} {before}: {output}");
            }
        }
    }
}

#[test]
fn a_line_is_not_held_back_for_the_few_characters_at_its_end() {
    let secret: String = (0..40_u8).map(|byte| char::from(33 + byte)).collect();
    let (masker, mut output) = (masker(&[&secret]), Vec::new());
    let form = STANDARD.encode(&secret);
    let line = format!("#5 0.1 {}\n", &form[..3]);
    masker.stream().push(line.as_bytes(), &mut output);
    assert_eq!(output, line.as_bytes());
}

#[test]
fn lines_of_a_secret_are_masked_one_by_one() {
    let masker = masker(&["-----BEGIN KEY-----\nMIIabcdefgh\nshort\n-----END KEY-----"]);
    assert_eq!(masker.mask("#5 0.1 MIIabcdefgh"), "#5 0.1 ***");
    assert_eq!(masker.mask("a short text"), "a short text");
    let whole = "x\n-----BEGIN KEY-----\r\nMIIabcdefgh\r\nshort\r\n-----END KEY-----\r\ny";
    assert_eq!(masker.mask(whole), "x\n***\r\ny");
}

#[test]
fn only_the_end_that_may_begin_a_secret_is_held() {
    let (masker, mut output) = (masker(&["hunter22"]), Vec::new());
    let mut stream = masker.stream();
    stream.push(b"a whole line\nthe hunt", &mut output);
    assert_eq!(output, b"a whole line\nthe ");
    stream.push(b" is on\n", &mut output);
    assert_eq!(output, b"a whole line\nthe hunt is on\n");
}

#[test]
fn short_values_and_harmless_names_stay() {
    let mut secrets = MaskerBuilder::default();
    secrets.credential("1");
    secrets.build_arg("USE_KEYS", "false");
    secrets.build_arg("NODE_ENV", "production");
    secrets.build_arg("npm_token", "abcdef");
    let masker = secrets.build().unwrap();
    assert_eq!(masker.mask("1 false production abcdef"), "1 false production ***");
}

#[test]
fn a_secret_that_begins_a_longer_one_is_masked_at_the_end() {
    assert_eq!(masker(&["abcdef", "abcdefghij"]).mask("x abcdef"), "x ***");
    assert_eq!(masker(&["abcdef", "xyabcdefgh"]).mask("xyabcdef"), "xy***");
}

#[test]
fn overlapping_secrets_leave_no_rest() {
    let masker = masker(&["abcdef", "defghi", "aaaa"]);
    assert_eq!(masker.mask("-abcdefghi-"), "-***-");
    let output = in_pieces(&masker, b"xaaaaaaaaaaaaaaaay", &[5, 9, 12]);
    assert_eq!(output, b"x***y");
}

proptest! {
    #[test]
    fn a_secret_cut_anywhere_never_leaks(
        secret in "[a-c]{4,12}",
        other in "[a-c\n]{5,9}",
        more in "[a-c]{1,5}",
        text in "[a-d\n]{0,40}",
        at in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(0..200_usize, 0..12),
    ) {
        prop_assume!(other.trim().len() >= 4);
        let masker = masker(&[&secret, &other, &format!("{secret}{more}")]);
        let text = {
            let at = at.index(text.len() + 1);
            format!("{}{secret}{}", &text[..at], &text[at..])
        };
        let output = String::from_utf8(in_pieces(&masker, text.as_bytes(), &cuts)).unwrap();
        prop_assert!(!output.contains(&secret), "{output:?}");
        prop_assert!(!output.contains(other.trim()), "{output:?}");
        prop_assert_eq!(output, masker.mask_raw(&text));
    }

    #[test]
    fn text_without_a_secret_is_unchanged(
        text in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(0..200_usize, 0..12),
    ) {
        let masker = masker(&["\u{1}correct horse battery staple"]);
        prop_assert_eq!(in_pieces(&masker, &text, &cuts), text);
    }

    #[test]
    fn a_folded_secret_cut_anywhere_never_leaks(
        secret in "[a-c]{11,30}",
        before in "[x-z]{0,9}",
        width in 4..12_usize,
        line_break in prop::sample::select(vec!["\n", "\r\n"]),
        cuts in prop::collection::vec(0..200_usize, 0..12),
    ) {
        let masker = masker(&[&secret]);
        let text = format!("{before}{secret}d");
        let lines: Vec<_> = text.as_bytes().chunks(width).collect();
        let output = in_pieces(&masker, &lines.join(line_break.as_bytes()), &cuts);
        let output = String::from_utf8(output).unwrap().replace(line_break, "");
        prop_assert!(output.contains(MASK), "{output:?}");
        // At most the three characters before a line break stay.
        prop_assert!(!output.contains(&secret[3..]), "{output:?}");
        prop_assert!(output.len() <= before.len() + 3 + MASK.len() + 1, "{output:?}");
    }
}
