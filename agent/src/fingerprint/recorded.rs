//! Tests with recorded reports of real builds (Docker 26.1, buildx 0.13). `first` is a build without a
//! registry's cache. The other builds ran on an empty engine, with the cache of `first`.

use std::fs;
use std::path::{Path, PathBuf};

use stagely_protocol::{BuildArgs, CacheMiss, ChangedFile, FileChange, MissCause};
use tokio_util::sync::CancellationToken;

use super::{BuildInputs, cache_miss};
use crate::docker::{OutputItem, Progress, RawJsonDecoder};
use crate::mask::MaskerBuilder;

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rawjson").join(name)
}

fn report(name: &str) -> Progress {
    let mut progress = Progress::new(MaskerBuilder::default().build().unwrap());
    let (mut decoder, mut items) = (RawJsonDecoder::default(), Vec::new());
    decoder.push(&fs::read(recorded(&format!("{name}.json"))).unwrap(), &mut items);
    decoder.finish(&mut items);
    for item in items {
        match item {
            OutputItem::Status(status) => progress.apply(status, &mut Vec::new()),
            OutputItem::Text(text) => panic!("{text}"),
        }
    }
    progress
}

/// The context of the recorded builds.
fn context() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for path in ["src/a.c", "include/b.h", "README"] {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "one").unwrap();
    }
    folder
}

fn inputs(
    context: &Path,
    dockerfile: &str,
    args: &[(&str, &str)],
    report: &Progress,
) -> BuildInputs {
    let pair = |(name, value): &(&str, &str)| (String::from(*name), String::from(*value));
    let args = BuildArgs(args.iter().map(pair).collect());
    let dockerfile = recorded(&format!("{dockerfile}.Dockerfile"));
    let mut inputs =
        BuildInputs::read(context, &dockerfile, &args, &CancellationToken::new()).unwrap();
    inputs.add_images(&report.base_images());
    BuildInputs::from_fingerprint(&inputs.to_fingerprint().unwrap()).unwrap();
    inputs
}

/// The miss of a build with `current` inputs, after a build with `previous` ones.
fn miss(previous: &BuildInputs, current: &BuildInputs, report: &Progress) -> Option<CacheMiss> {
    let previous = BuildInputs::from_fingerprint(&previous.to_fingerprint().unwrap()).unwrap();
    // Assumes that a cache without the missed steps was imported.
    cache_miss(Some(&previous), current, &report.steps(), true)
}

fn of(step: &str, cause: MissCause) -> CacheMiss {
    CacheMiss { step: step.to_owned(), cause }
}

fn changed(path: &str) -> MissCause {
    let files = vec![ChangedFile { path: path.to_owned(), change: FileChange::Changed }];
    MissCause::Files { count: 1, files }
}

#[test]
fn from_and_contexts_are_not_steps() {
    let count = |name: &str| {
        let steps = report(name).steps();
        (steps.len(), steps.iter().filter(|step| step.cached).count())
    };
    assert_eq!(count("one.first"), (8, 1));
    assert_eq!(count("one.fresh"), (8, 8));
    assert_eq!(count("two.first"), (8, 0));
    assert_eq!(count("three.first"), (7, 0));
    assert_eq!(count("four.first"), (2, 0));
    assert_eq!(count("five.first"), (2, 0));
}

#[test]
fn an_import_counts_only_if_it_succeeded() {
    assert!(!report("three.first").has_imported_cache(), "the registry had none");
    assert!(report("one.fresh").has_imported_cache());
}

#[test]
fn the_first_miss_is_found_in_the_dockerfiles_order() {
    let context = context();
    let first = report("one.first");
    let was = inputs(context.path(), "one", &[], &first);
    let copy = "[builder 3/6] COPY --chown=1:1 src/*.c include/ ./";

    assert_eq!(miss(&was, &was, &report("one.fresh")), None);
    let none = cache_miss(None, &was, &first.steps(), false);
    assert_eq!(none, Some(of(copy, MissCause::NoCache)));
    let of_others = cache_miss(None, &was, &first.steps(), true);
    assert_eq!(of_others, Some(of(copy, MissCause::NotRecorded)));

    fs::write(context.path().join("src/a.c"), "two").unwrap();
    fs::write(context.path().join("README"), "not a source of that step").unwrap();
    let report_of_file = report("one.file");
    let is = inputs(context.path(), "one", &[], &report_of_file);
    assert_eq!(miss(&was, &is, &report_of_file), Some(of(copy, changed("src/a.c"))));
    assert_eq!(miss(&is, &is, &report_of_file), Some(of(copy, MissCause::Unknown)));

    let report_of_arg = report("one.arg");
    let is = inputs(context.path(), "one", &[("MODE", "prod")], &report_of_arg);
    let names = vec!["MODE".to_owned()];
    let run = "[builder 4/6] RUN echo prod    && echo \"two\"";
    assert_eq!(miss(&was, &is, &report_of_arg), Some(of(run, MissCause::BuildArgs { names })));
}

#[test]
fn a_stage_upon_a_stage_has_its_own_miss() {
    let context = context();
    let was = inputs(context.path(), "two", &[], &report("two.first"));
    fs::write(context.path().join("src/a.c"), "two").unwrap();
    let report = report("two.fresh");
    let is = inputs(context.path(), "two", &[], &report);
    assert_eq!(miss(&was, &is, &report), Some(of("[a 1/2] COPY src /s", changed("src/a.c"))));
}

#[test]
fn a_new_base_image_is_the_cause_for_stages_and_for_copy() {
    let context = context();
    for (name, stage, step) in [
        // WORKDIR came from the engine's own cache, so the base image has not changed.
        ("one", false, "[builder 3/6] COPY --chown=1:1 src/*.c include/ ./"),
        ("two", true, "[base 2/2] RUN echo base"),
        ("three", true, "[tools 2/2] RUN echo tools"),
        ("four", true, "[1/3] COPY . ."),
        // `FROM scratch` has no base image.
        ("five", false, "[1/2] COPY . /"),
    ] {
        let report = report(&format!("{name}.first"));
        let is = inputs(context.path(), name, &[], &report);
        let mut was = BuildInputs::read(
            context.path(),
            &recorded(&format!("{name}.Dockerfile")),
            &BuildArgs::default(),
            &CancellationToken::new(),
        )
        .unwrap();
        let mut images = report.base_images();
        for image in &mut images {
            image.digest = "sha256:old".to_owned();
        }
        was.add_images(&images);
        let Some(CacheMiss { step: missed, cause }) = miss(&was, &is, &report) else { panic!() };
        assert_eq!(missed, step);
        let is_base = matches!(&cause, MissCause::BaseImage { was, is }
            if was.ends_with("@sha256:old") && is.contains("@sha256:e79de00"));
        assert_eq!(is_base, stage, "{name}: {cause}");
    }
}
