//! Matrices: their combinations and mistakes.

use super::{build, problem_of_build, problems};

/// The names of the variants, without the build's.
fn variants(matrix: &str) -> Vec<String> {
    let build = build(&format!("matrix: {matrix}"));
    build
        .variants
        .iter()
        .map(|variant| variant.name.strip_prefix("a-").unwrap().to_owned())
        .collect()
}

fn problem(matrix: &str) -> String {
    problem_of_build(&format!("matrix: {matrix}")).strip_prefix("matrix").unwrap().to_owned()
}

#[test]
fn a_matrix_is_the_product_of_its_lists_with_values_as_written() {
    assert_eq!(
        variants("{NODE_VERSION: [18, 3.10], Debug: [true, 'A/b c']}"),
        [
            "node_version-18-debug-true",
            "node_version-18-debug-a-b-c",
            "node_version-3.10-debug-true",
            "node_version-3.10-debug-a-b-c",
        ]
    );
    let build = build("matrix: {V: [3.1, 3.10, '${BRANCH}']}");
    let values: Vec<_> = build.variants.iter().map(|variant| &*variant.values["V"]).collect();
    assert_eq!(values, ["3.1", "3.10", "${BRANCH}"]);
}

#[test]
fn exclude_removes_and_then_include_adds_as_github_does() {
    assert_eq!(variants("{A: [1, 2], B: [x, y], exclude: [{A: 1, B: x}, {A: 2}]}"), ["a-1-b-y"]);
    // The example of GitHub's manual.
    assert_eq!(
        variants(
            "{fruit: [apple, pear], animal: [cat, dog], include: [{color: green}, {color: pink, \
             animal: cat}, {fruit: apple, shape: circle}, {fruit: banana}, {fruit: banana, \
             animal: cat}]}"
        ),
        [
            "fruit-apple-animal-cat-color-pink-shape-circle",
            "fruit-apple-animal-dog-color-green-shape-circle",
            "fruit-pear-animal-cat-color-pink",
            "fruit-pear-animal-dog-color-green",
            "fruit-banana",
            "fruit-banana-animal-cat",
        ]
    );
    assert_eq!(variants("{include: [{A: 1}, {A: 2, B: 3}]}"), ["a-1", "a-2-b-3"]);
}

#[test]
fn mistakes_of_a_matrix_are_reported_with_their_path() {
    for (matrix, expected) in [
        ("5", ": expected a map of build arguments to lists of values, found a number"),
        (
            "{}",
            ": names no build argument; map one to a list of values, such as `NODE_VERSION: \
             [18, 20]`",
        ),
        ("{A: 18}", ".A: expected a list of values, found a number; write `[…]` around it"),
        ("{A: []}", ".A: names no value; leave it out instead"),
        ("{A: [18, '18']}", ".A[1]: `18` is named twice"),
        ("{A: [~]}", ".A[0]: has no value; write `\"\"` for an empty one"),
        ("{A: [[x]]}", ".A[0]: expected text, a number or a boolean, found a list"),
        (
            "{A-B: [x]}",
            ".A-B: a build argument's name is made of letters (a-z, A-Z), digits and `_`, and \
             starts with no digit",
        ),
        ("{A: [x], include: []}", ".include: names no combination; leave it out instead"),
        ("{A: [x], include: [{}]}", ".include[0]: names no value; leave it out instead"),
        ("{A: [x], exclude: [x]}", ".exclude[0]: expected a map of names to values, found text"),
        (
            "{Node: [x], exclude: [{node: x}]}",
            ".exclude[0].node: is not in the lists of this matrix; did you mean `Node`?",
        ),
        (
            "{A: [x], exclude: [{A: y}]}",
            ".exclude[0]: excludes nothing: no combination of the lists has these values",
        ),
        ("{A: [x], exclude: [{A: x}]}", ": `exclude` leaves no combination"),
        (
            "{A: [x, X]}",
            ": the combinations `A: x` and `A: X` are both called `a-a-x`: in tags and job names \
             upper case is lower case, and other characters than letters, digits, `_`, `.` and \
             `-` are `-`",
        ),
    ] {
        assert_eq!(problem(matrix), expected, "{matrix}");
    }
    for matrix in ["{A: [x]}", "{B: [x], include: [{A: 1}]}"] {
        let problem = problem_of_build(&format!("build_args: {{A: 1}}, matrix: {matrix}"));
        assert!(problem.ends_with("A: is in `build_args` too; keep one"), "{problem}");
    }
}

#[test]
fn more_than_64_jobs_are_refused_with_their_number() {
    let list =
        |count: usize| (0..count).map(|value| value.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(variants(&format!("{{A: [{}]}}", list(64))).len(), 64);
    assert_eq!(
        problem(&format!("{{A: [{}]}}", list(65))),
        ": makes 65 jobs (65 combinations, 1 job each), but a build has at most 64"
    );
    let both = "platforms: [linux/amd64, linux/arm64], matrix";
    assert_eq!(build(&format!("{both}: {{A: [{}]}}", list(21))).job_count(), 63);
    assert_eq!(
        problem_of_build(&format!("{both}: {{A: [{}]}}", list(22))),
        "matrix: makes 66 jobs (22 combinations, 3 jobs each), but a build has at most 64"
    );
    let hostile: Vec<_> = (0..16).map(|index| format!("K{index}: [{}]", list(256))).collect();
    assert_eq!(
        problem(&format!("{{{}}}", hostile.join(", "))),
        format!(
            ": its lists make {} combinations before `exclude`, but a build has at most 64 jobs",
            u128::MAX
        )
    );
    let name = format!("{{A: [{}]}}", "x".repeat(100));
    let lines = problems(format!("builds: {{a: {{context: ., matrix: {name}}}}}"));
    assert!(lines[0].contains("is too long: a job's name has at most 100"), "{lines:?}");
}

#[test]
fn combinations_take_names_from_other_builds() {
    let lines = problems("builds:\n  app: {context: ., matrix: {A: [1]}}\n  app-a-1: {context: .}");
    assert!(lines[0].ends_with("its name `app-a-1` belongs to build `app` (line 2) already"));
}
