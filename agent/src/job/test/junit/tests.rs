//! Files as pytest, jest-junit, surefire, go-junit-report and Playwright write them, and damaged ones.

use super::super::cases::Case;
use super::*;
use crate::mask::MaskerBuilder;

const PYTEST: &str = r#"<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="4" time="0.032" timestamp="2026-11-30T10:00:00+00:00" hostname="ci"><testcase classname="tests.test_login.TestLogin" name="test_ok" time="0.001" /><testcase classname="tests.test_login" name="test_remembers[a-1]" time="0.002"><failure message="AssertionError: assert 401 == 200&#10; +  where 401 = &lt;Response [401]&gt;.status_code">def test_remembers():
&gt;       assert response.status_code == 200
E       AssertionError: assert 401 == 200

tests/test_login.py:12: AssertionError</failure></testcase><testcase classname="tests.test_db" name="test_db" time="0.000"><error message="failed on setup with &quot;OSError: no db&quot;">conftest.py:3: OSError</error></testcase><testcase classname="tests.test_db" name="test_later" time="0.000"><skipped type="pytest.skip" message="later">tests/test_db.py:9: later</skipped></testcase></testsuite></testsuites>"#;

const JEST: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="jest tests" tests="2" failures="1" errors="0" time="1.2">
  <testsuite name="login" errors="0" failures="1" skipped="0" timestamp="2026-11-30T10:00:00" time="0.9" tests="2">
    <properties><property name="a" value="b"/></properties>
    <testcase classname="login remembers me" name="login remembers me" time="0.012">
      <failure>Error: expect(received).toBe(expected) // Object.is equality

Expected: 200
Received: 401
    at Object.toBe (/app/login.test.js:12:25)
    at new Promise (&lt;anonymous&gt;)</failure>
    </testcase>
    <testcase classname="login logs out" name="login logs out" time="0.001">
    </testcase>
  </testsuite>
</testsuites>"#;

const SUREFIRE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuite xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" version="3.0.2" name="com.example.LoginTest" time="1,234.5" tests="4" errors="0" skipped="1" failures="1">
  <properties><property name="java.version" value="21"/></properties>
  <testcase name="passes" classname="com.example.LoginTest" time="0.01"/>
  <testcase name="isFlaky" classname="com.example.LoginTest" time="1,000.5">
    <flakyFailure message="expected: &lt;1&gt; but was: &lt;2&gt;" type="org.opentest4j.AssertionFailedError">
      <stackTrace><![CDATA[org.opentest4j.AssertionFailedError: expected: <1> but was: <2>
	at com.example.LoginTest.isFlaky(LoginTest.java:20)]]></stackTrace>
      <system-out><![CDATA[of the first run]]></system-out>
    </flakyFailure>
  </testcase>
  <testcase name="fails" classname="com.example.LoginTest" time="0.02">
    <failure message="boom" type="java.lang.IllegalStateException"><![CDATA[java.lang.IllegalStateException: boom
	at com.example.LoginTest.fails(LoginTest.java:30)]]></failure>
    <rerunFailure message="boom again" type="java.lang.IllegalStateException"><stackTrace>second run</stackTrace></rerunFailure>
    <system-out>output</system-out>
  </testcase>
  <testcase name="skipped" classname="com.example.LoginTest" time="0"><skipped message="later"/></testcase>
</testsuite>"#;

const GO: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="3" failures="1" skipped="1">
	<testsuite name="example.com/app/login" tests="3" failures="1" errors="0" id="0" hostname="ci" skipped="1" time="0.160" timestamp="2026-11-30T10:00:00Z">
		<properties><property name="go.version" value="go1.25"></property></properties>
		<testcase name="TestRemembers" classname="example.com/app/login" time="0.060">
			<failure message="Failed"><![CDATA[    login_test.go:11: got 401]]></failure>
		</testcase>
		<testcase name="TestLater" classname="example.com/app/login" time="0.000">
			<skipped message="    login_test.go:20: later"></skipped>
		</testcase>
		<testcase name="TestOk" classname="example.com/app/login" time="0.100"></testcase>
	</testsuite>
</testsuites>"#;

const PLAYWRIGHT: &str = r#"<testsuites id="" name="" tests="2" failures="1" skipped="0" errors="0" time="3.2">
<testsuite name="login.spec.ts" timestamp="2026-11-30T10:00:00.000Z" hostname="chromium" tests="2" failures="1" skipped="0" time="2.9" errors="0">
<testcase name="login › remembers me" classname="login.spec.ts" time="1.5">
<failure message="login.spec.ts:12:5 remembers me" type="FAILURE">
<![CDATA[  [chromium] › login.spec.ts:12:5 › login › remembers me

    Error: expect(locator).toBeVisible() failed
      10 |   await page.goto('/');
    > 12 |   await expect(page.getByText('Hello')).toBeVisible();
]]>
</failure>
<system-out>
<![CDATA[
[[ATTACHMENT|test-results/login/trace.zip]]
]]>
</system-out>
</testcase>
<testcase name="login › logs out" classname="login.spec.ts" time="1.4">
</testcase>
</testsuite>
</testsuites>"#;

fn all() -> Cases {
    Cases::new(MaskerBuilder::default().build().unwrap())
}

/// The cases of files that are not damaged.
fn cases(text: &str) -> Cases {
    let mut cases = all();
    let (has_suites, result) = read(text, &mut cases);
    result.unwrap();
    assert!(has_suites);
    cases
}

/// Passed, failed, skipped, flaky.
type Counts = (u64, usize, u64, usize);

fn counts(cases: &Cases) -> Counts {
    (cases.passed, cases.failed.len(), cases.skipped, cases.flaky.len())
}

fn texts(case: &Case) -> (&str, &str, &str) {
    (&case.suite, &case.name, &case.message)
}

#[test]
fn files_of_pytest_are_read() {
    let cases = cases(PYTEST);
    assert_eq!(counts(&cases), (1, 2, 1, 0));
    let message = "AssertionError: assert 401 == 200 + where 401 = <Response [401]>.status_code";
    assert_eq!(texts(&cases.failed[0]), ("tests.test_login", "test_remembers[a-1]", message));
    let last = "tests/test_login.py:12: AssertionError";
    assert_eq!(cases.failed[0].lines.last().unwrap(), last);
    assert_eq!(cases.failed[0].lines[1], ">       assert response.status_code == 200");
    assert_eq!(cases.failed[1].message, "failed on setup with \"OSError: no db\"");
    assert!((cases.failed[0].seconds - 0.002).abs() < 1e-9);
}

#[test]
fn files_of_jest_have_their_message_in_the_text() {
    let cases = cases(JEST);
    assert_eq!(counts(&cases), (1, 1, 0, 0));
    let message = "Error: expect(received).toBe(expected) // Object.is equality";
    assert_eq!(texts(&cases.failed[0]).2, message);
    assert_eq!(cases.failed[0].lines.last().unwrap(), "    at new Promise (<anonymous>)");
}

#[test]
fn files_of_maven_tell_flaky_cases_from_failed_ones() {
    let cases = cases(SUREFIRE);
    assert_eq!(counts(&cases), (1, 1, 1, 1));
    let message = "expected: <1> but was: <2>";
    assert_eq!(texts(&cases.flaky[0]), ("com.example.LoginTest", "isFlaky", message));
    assert!((cases.flaky[0].seconds - 1000.5).abs() < 1e-9);
    assert_eq!(texts(&cases.failed[0]), ("com.example.LoginTest", "fails", "boom"));
    let last = "    at com.example.LoginTest.fails(LoginTest.java:30)";
    assert_eq!(cases.failed[0].lines.last().unwrap(), last);
}

#[test]
fn files_of_go_and_playwright_are_read() {
    let go = cases(GO);
    assert_eq!(counts(&go), (1, 1, 1, 0));
    assert_eq!(texts(&go.failed[0]), ("example.com/app/login", "TestRemembers", "Failed"));
    assert_eq!(go.failed[0].lines, ["    login_test.go:11: got 401"]);
    let playwright = cases(PLAYWRIGHT);
    assert_eq!(counts(&playwright), (1, 1, 0, 0));
    let (suite, name, message) = texts(&playwright.failed[0]);
    assert_eq!((suite, name), ("login.spec.ts", "login › remembers me"));
    assert_eq!(message, "login.spec.ts:12:5 remembers me");
    assert_eq!(playwright.failed[0].lines.len(), 4);
}

#[test]
fn suites_in_suites_name_cases_without_a_class() {
    let text = "<testsuites><testsuite name='outer'><testsuite name='inner'><testcase name='a'><failure/></testcase></testsuite>\
                <testcase name='b'><error type='Oops'/></testcase><testcase file='f.rb'><failure message='m'/></testcase>\
                <testcase name='c' status='notrun'/></testsuite></testsuites>";
    let cases = cases(text);
    assert_eq!(counts(&cases), (0, 3, 1, 0));
    assert_eq!(texts(&cases.failed[0]), ("inner", "a", ""));
    assert_eq!(texts(&cases.failed[1]), ("outer", "b", "Oops"));
    assert_eq!(texts(&cases.failed[2]), ("f.rb", "(without a name)", "m"));
}

#[test]
fn output_explains_a_failure_without_a_text() {
    let text = "<testsuite><testcase name='a'><failure message='m'/><system-err>one &amp; two&#33; &unknown; &#x1b;[31mred\n\
                </system-err></testcase></testsuite>";
    let cases = cases(text);
    assert_eq!(cases.failed[0].lines, ["one & two! &unknown; red"]);
}

#[test]
fn other_files_have_no_suites() {
    for text in ["", "<coverage><testcase name='a'/></coverage>", "just text"] {
        let mut cases = all();
        let (has_suites, _) = read(text, &mut cases);
        assert!(!has_suites, "{text}");
        assert_eq!(counts(&cases), (0, 0, 0, 0));
    }
    assert_eq!(counts(&cases("<testsuites/>")), (0, 0, 0, 0));
}

/// The counts and the warnings of a file with these bytes.
fn visited(bytes: &[u8]) -> (Option<Counts>, Vec<String>) {
    let mut files = JunitFiles::new(MaskerBuilder::default().build().unwrap());
    let file = FoundFile { name: "a.xml", path: "/a.xml", bytes: bytes.len() as u64 };
    files.visit(&file, &mut &*bytes).unwrap();
    let warnings = files.warnings().to_vec();
    (files.cases().as_ref().map(counts), warnings)
}

#[test]
fn a_damaged_file_is_named_and_what_stands_before_the_damage_counts() {
    for damage in ["<testcase name='b'", "</wrong>", "<!-- no end", &"<x>".repeat(200)] {
        let text = format!("<testsuites><testsuite name='s'><testcase name='a'/>{damage}");
        let (counts, warnings) = visited(text.as_bytes());
        assert_eq!(counts, Some((1, 0, 0, 0)), "{damage}");
        assert_eq!(warnings.len(), 1, "{damage}");
        assert!(warnings[0].starts_with("the JUnit file `a.xml` is damaged: "), "{warnings:?}");
    }
}

#[test]
fn a_failure_counts_although_its_case_does_not_end() {
    let text = "<testsuite><testcase name='ok'/><testcase name='open'><failure message='lost'>";
    let (counts, warnings) = visited(text.as_bytes());
    assert_eq!(
        counts,
        visited(
            b"<testsuite><testcase name='ok'/><testcase name='a'><error/></testcase></testsuite>"
        )
        .0
    );
    assert!(warnings[0].contains("it ends within an element"), "{warnings:?}");
    let open = "<testsuite><testcase name='ok'/><testcase name='open'>";
    assert_eq!(
        visited(open.as_bytes()).0,
        visited(b"<testsuite><testcase name='ok'/></testsuite>").0
    );
}

#[test]
fn long_names_are_cut_where_they_are_read() {
    let name = "x".repeat(4 * 1024 * 1024);
    let cases = "<testcase/>".repeat(200_000);
    let text =
        format!("<testsuite name='{name}'>{cases}<testcase><failure/></testcase></testsuite>");
    let mut all = all();
    assert!(read(&text, &mut all).1.is_ok());
    assert_eq!((all.passed, all.failed.len()), (200_000, 1));
    assert!(all.failed[0].suite.len() <= TEXT_BYTES_MAX, "{}", all.failed[0].suite.len());
}

#[test]
fn files_in_other_encodings_are_read() {
    let text = "<testsuite><testcase name='ü'/></testsuite>";
    let utf16: Vec<_> =
        [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let with_mark = format!("\u{feff}{text}");
    let latin = b"<testsuite><testcase name='\xfc'/></testsuite>";
    for bytes in [&utf16[..], with_mark.as_bytes(), latin] {
        assert_eq!(visited(bytes), (Some((1, 0, 0, 0)), Vec::new()));
    }
}

#[test]
fn files_that_are_too_large_or_too_many_are_named() {
    let mut files = JunitFiles::new(MaskerBuilder::default().build().unwrap());
    let large = FoundFile { name: "large.xml", path: "/large.xml", bytes: FILE_BYTES_MAX + 1 };
    files.visit(&large, &mut io::repeat(b' ')).unwrap();
    assert!(files.warnings()[0].starts_with("the JUnit file `large.xml` is not read: "));
    for _ in 0..FILES_MAX {
        let file = FoundFile { name: "a.xml", path: "/a.xml", bytes: 12 };
        files.visit(&file, &mut &b"<testsuite/>"[..]).unwrap();
    }
    assert_eq!(files.warnings()[1..], ["only the first 1000 JUnit files are read"]);
    assert_eq!(files.suites, FILES_MAX - 1);
}

#[test]
fn a_long_text_keeps_whole_lines_at_its_end() {
    let mut text = String::new();
    for line in 0..10_000 {
        add_end(&mut text, &format!("line {line} ü\n"));
    }
    assert!(text.len() <= 2 * TEXT_BYTES_MAX, "{}", text.len());
    assert!(text.starts_with("line ") && text.ends_with("line 9999 ü\n"));
}

proptest::proptest! {
    /// `PROPTEST_CASES` sets how many are tried.
    #[test]
    fn a_damaged_file_does_no_harm(
        sample in proptest::sample::select(&[PYTEST, JEST, SUREFIRE, GO, PLAYWRIGHT][..]),
        at in proptest::prelude::any::<proptest::sample::Index>(),
        length in 0..40_usize,
        token in proptest::sample::select(&["", "<", ">", "\"", "&", "]]>", "<![CDATA[", "<testcase", "\0", "</", "<!DOCTYPE a [", "&#x110000;"][..]),
    ) {
        let mut text = sample.to_owned();
        let at = text.floor_char_boundary(at.index(text.len() + 1));
        let end = text.ceil_char_boundary(text.len().min(at + length));
        text.replace_range(at..end, token);
        let mut cases = all();
        let _ = read(&text, &mut cases);
        proptest::prop_assert!(cases.passed + cases.skipped + cases.failed.len() as u64 <= 8);
    }
}
