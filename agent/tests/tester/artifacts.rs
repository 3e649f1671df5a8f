//! Files that a test leaves behind.

use serde_json::json;

use crate::setup::Setup;

#[tokio::test]
async fn files_that_match_are_uploaded_also_those_in_volumes_and_outside_of_the_working_folder() {
    let setup = Setup::new("files").await;
    let image = setup.image("VOLUME /out /app/volume");
    let script = "mkdir -p report/deep shots; echo one >report/a.html; echo two >report/deep/b.txt; echo no >other; \
                  echo three >/out/c.log; echo four >volume/d; echo png >shots/1.png; echo jpg >shots/2.jpg; chmod 000 report/a.html";
    let fields = json!({
        "artifacts": ["report/**", "/out/*.log", "volume", "missing/*"],
        "comment_images": ["shots/*.png"],
    });
    let status = setup.passes(setup.test(&image, script, fields)).await;
    let artifacts = status.artifacts.unwrap();
    assert_eq!(artifacts.comment_images, ["shots/1.png"]);
    let mut files = setup.core.files(&artifacts);
    files.sort();
    let texts: Vec<_> =
        files.iter().map(|(name, text)| (&**name, str::from_utf8(text).unwrap())).collect();
    let expected = [
        ("out/c.log", "three\n"),
        ("report/a.html", "one\n"),
        ("report/deep/b.txt", "two\n"),
        ("shots/1.png", "png\n"),
        ("volume/d", "four\n"),
    ];
    assert_eq!(texts, expected);
    assert_eq!(status.warnings, [""; 0]);
}

#[tokio::test]
async fn links_and_special_files_are_left_out_with_a_warning() {
    let setup = Setup::new("links").await;
    let image = setup.image("RUN ln -s / linked");
    let script = "mkdir -p out/..hidden && echo ok >out/ok && echo dots >out/..hidden/a..b && ln -s /etc/passwd out/passwd && \
                  ln -s ../../../etc/shadow out/shadow && ln out/ok out/zz-hard && mkfifo out/fifo && ln -s /etc out/folder && \
                  printf x >\"$(printf 'out/a\\nb')\"";
    let fields = json!({ "artifacts": ["out/**", "linked/etc/passwd"] });
    let status = setup.passes(setup.test(&image, script, fields)).await;
    let artifacts = status.artifacts.unwrap();
    let mut names: Vec<_> =
        setup.core.files(&artifacts).into_iter().map(|(name, _)| name).collect();
    names.sort();
    // The engine follows `linked` inside the container, whose own file that is.
    assert_eq!(names, ["linked/etc/passwd", "out/..hidden/a..b", "out/ok"]);
    let warnings = status.warnings.join("\n");
    for warning in [
        "`out/folder` and 2 others are not among the artifacts: it is a symbolic link",
        "`out/zz-hard` is not among the artifacts: it is a further name of another file",
        "`out/fifo` is not among the artifacts: it is not a regular file",
        "`out/a\\nb` is not among the artifacts: its name is not usable",
    ] {
        assert!(warnings.contains(warning), "{warning}: {warnings}");
    }
}

#[tokio::test]
async fn five_thousand_small_files_are_uploaded_and_one_more_is_not() {
    let setup = Setup::new("many").await;
    let image = setup.image("");
    let script = "mkdir out; i=0; while [ $i -lt 5001 ]; do echo $i >out/$i; i=$((i+1)); done";
    let fields = json!({ "artifacts": ["out"] });
    let status = setup.passes(setup.test(&image, script, fields)).await;
    let artifacts = status.artifacts.unwrap();
    assert_eq!(artifacts.files, 5_000);
    for (name, content) in setup.core.files(&artifacts) {
        let number = String::from_utf8(content).unwrap();
        assert_eq!(name, format!("out/{}", number.trim()));
    }
    assert_eq!(status.warnings.len(), 1, "{:?}", status.warnings);
    assert!(status.warnings[0].starts_with("1 files, the first of them `out/"));
}

#[tokio::test]
async fn a_folder_that_holds_the_whole_image_can_be_looked_through() {
    let setup = Setup::new("root").await;
    let image = setup.image("WORKDIR /");
    let script = "mkdir -p a/b && echo x >a/b/c.result";
    let fields = json!({ "artifacts": ["**/*.result"] });
    let status = setup.passes(setup.test(&image, script, fields)).await;
    let files = setup.core.files(&status.artifacts.unwrap());
    assert_eq!(files, [("a/b/c.result".to_owned(), b"x\n".to_vec())]);
}

#[tokio::test]
async fn without_files_nothing_is_uploaded() {
    let setup = Setup::new("none").await;
    let image = setup.image("");
    let fields = json!({ "artifacts": ["out/**"] });
    let status = setup.passes(setup.test(&image, "true", fields)).await;
    assert_eq!(status.artifacts, None);
    assert_eq!(status.warnings, ["no artifact matches `out/**`"]);
    assert!(setup.core.artifacts().requests.is_empty());
}
