//! `stagely validate`: checks the `stagely.yaml` of a working tree.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;
use stagely_manifest::{
    Build, FILE_NAME, Manifest, PreviewSource, Problem, Problems, WritableMount,
};

/// Checks the file `path` (or `stagely.yaml` in the folder `path`) and prints every problem and warning to
/// standard output. Contexts, Dockerfiles and the compose file are looked up from the repository's root.
///
/// The exit code is 0 for a valid file and 1 for a file with problems.
///
/// # Errors
/// The file cannot be read, or standard output cannot be written.
pub fn validate(path: Option<PathBuf>, json: bool) -> anyhow::Result<ExitCode> {
    let path = path.unwrap_or_else(|| PathBuf::from(FILE_NAME));
    let path = if path.is_dir() { path.join(FILE_NAME) } else { path };
    let checked = check(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = if json { json_text(&path, &checked)? } else { result_text(&path, &checked) };
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(if checked.result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Checked {
    result: Result<Manifest, Problems>,
    warnings: Vec<String>,
}

fn check(path: &Path) -> io::Result<Checked> {
    let bytes = stagely_manifest::read_file(path)?;
    let root = repository_root(path)?;
    let result = stagely_manifest::validate(&path.display().to_string(), &bytes, &root);
    let warnings =
        result.as_ref().map(|manifest| compose_warnings(manifest, &root)).unwrap_or_default();
    Ok(Checked { result, warnings })
}

/// Warnings about the compose file of the preview.
fn compose_warnings(manifest: &Manifest, root: &Path) -> Vec<String> {
    let source = manifest.preview.as_ref().map(|preview| &preview.source);
    let Some(PreviewSource::Compose { path, .. }) = source else { return Vec::new() };
    let file = root.join(path);
    let (Ok(text), Some(folder)) = (fs::read_to_string(&file), file.parent()) else {
        return Vec::new();
    };
    let mut warnings = refused(path, &text, folder, root);
    warnings.extend(lost_writes(path, &text, folder));
    warnings
}

/// What a deployment refuses, as far as it is known before Docker Compose has read the file.
fn refused(path: &str, text: &str, folder: &Path, root: &Path) -> Vec<String> {
    let Some(mut model) = stagely_manifest::compose_model(text, folder) else { return Vec::new() };
    let found = stagely_agent::preview::violations(&mut model, root).into_iter();
    found
        .map(|sentence| {
            format!(
                "{path}: {sentence}; previews refuse it, unless `previews.allow-privileged` is set"
            )
        })
        .collect()
}

/// What services write to folders of the repository.
fn lost_writes(path: &str, text: &str, folder: &Path) -> Vec<String> {
    let warning = |WritableMount { at, service, source }: WritableMount| {
        format!(
            "{path}:{}:{}: the service `{service}` can write to `{source}`, which is new with each deployment: what it \
             writes there is lost with the next push; use a named volume, or mount it read-only with `:ro`",
            at.line, at.column
        )
    };
    stagely_manifest::writable_mounts(text, folder).into_iter().map(warning).collect()
}

/// The nearest parent folder that contains `.git` (a file, in a linked worktree), or else the file's own
/// folder.
fn repository_root(path: &Path) -> io::Result<PathBuf> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new(".")).canonicalize()?;
    let root = folder.ancestors().find(|ancestor| ancestor.join(".git").exists());
    Ok(root.unwrap_or(&folder).to_owned())
}

fn result_text(path: &Path, checked: &Checked) -> String {
    match &checked.result {
        Ok(manifest) => {
            let builds = counted(manifest.builds.len(), "build");
            let jobs = manifest.builds.iter().map(Build::job_count).sum();
            // Platforms, merges and combinations add jobs.
            let jobs = if jobs == manifest.builds.len() {
                String::new()
            } else {
                format!(", {}", counted(jobs, "job"))
            };
            let preview = if manifest.preview.is_some() { ", a preview" } else { "" };
            let valid = format!("{} is valid: {builds}{jobs}{preview}", path.display());
            let warnings = checked.warnings.iter().map(|warning| format!("warning: {warning}"));
            [valid].into_iter().chain(warnings).collect::<Vec<_>>().join("\n")
        }
        Err(problems) => problems.to_string(),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The result that `--json` prints.
#[derive(Serialize)]
struct ValidationView<'a> {
    file: String,
    valid: bool,
    problems: &'a [Problem],
    /// The number of further problems.
    more: usize,
    warnings: &'a [String],
}

fn json_text(path: &Path, checked: &Checked) -> serde_json::Result<String> {
    let (problems, more) = match &checked.result {
        Ok(_) => (&[][..], 0),
        Err(problems) => (&problems.problems[..], problems.more),
    };
    let file = path.display().to_string();
    let (valid, warnings) = (checked.result.is_ok(), &*checked.warnings);
    serde_json::to_string_pretty(&ValidationView { file, valid, problems, more, warnings })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `repo/.git`, `repo/api/Dockerfile`, and `stagely.yaml` in `repo/ci` with the context `api`.
    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in [".git", "api/Dockerfile", "ci/stagely.yaml"] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "builds: {api: {context: api}}\n").unwrap();
        }
        folder
    }

    #[test]
    fn paths_are_looked_up_from_the_root_of_the_repository() {
        let folder = repository();
        let path = folder.path().join("ci/stagely.yaml");
        let result = check(&path).unwrap();
        assert!(result_text(&path, &result).ends_with("ci/stagely.yaml is valid: 1 build"));

        fs::remove_file(folder.path().join(".git")).unwrap();
        let text = result_text(&path, &check(&path).unwrap());
        assert!(text.ends_with("the context `api` is not in the repository"), "{text}");
    }

    #[test]
    fn jobs_are_counted_if_a_build_has_several() {
        let folder = repository();
        let path = folder.path().join("ci/stagely.yaml");
        let text = "builds: {api: {context: api, platforms: [linux/amd64, linux/arm64], matrix: {A: \
                    [1, 2]}}}";
        fs::write(&path, text).unwrap();
        let text = result_text(&path, &check(&path).unwrap());
        assert!(text.ends_with("is valid: 1 build, 6 jobs"), "{text}");
    }

    #[test]
    fn the_compose_file_is_looked_up_from_the_root_of_the_repository() {
        let folder = repository();
        let path = folder.path().join("ci/stagely.yaml");
        let text = "builds: {api: {context: api}}\npreview:\n  compose: compose.yaml\n  endpoints: \
                    {web: {service: web, port: 80}}\n";
        fs::write(&path, text).unwrap();
        let problem = result_text(&path, &check(&path).unwrap());
        let missing = ":3:12: preview.compose: the compose file `compose.yaml` is not a file of the \
                       repository";
        assert!(problem.ends_with(missing), "{problem}");

        fs::write(folder.path().join("compose.yaml"), "services: {webb: {image: a}}\n").unwrap();
        let problem = result_text(&path, &check(&path).unwrap());
        let missing = "preview.endpoints.web.service: the compose file `compose.yaml` has no service \
                       `web`; did you mean `webb`?";
        assert!(problem.ends_with(missing), "{problem}");

        fs::write(folder.path().join("compose.yaml"), "services: {web: {image: a}}\n").unwrap();
        let text = result_text(&path, &check(&path).unwrap());
        assert!(text.ends_with("is valid: 1 build, a preview"), "{text}");

        let compose = "services: {web: {volumes: ['./data:/data']}}\n";
        fs::write(folder.path().join("compose.yaml"), compose).unwrap();
        let checked = check(&path).unwrap();
        let text = result_text(&path, &checked);
        let warning =
            "a preview\nwarning: compose.yaml:1:28: the service `web` can write to `./data`";
        assert!(text.contains(warning), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&json_text(&path, &checked).unwrap()).unwrap();
        assert_eq!((&json["valid"], json["warnings"].as_array().unwrap().len()), (&true.into(), 1));
    }

    #[test]
    fn what_a_deployment_refuses_is_a_warning() {
        let folder = repository();
        let path = folder.path().join("ci/stagely.yaml");
        let text = "builds: {api: {context: api}}\npreview:\n  compose: compose.yaml\n  endpoints: \
                    {web: {service: web, port: 80}}\n";
        fs::write(&path, text).unwrap();
        let compose = "services: {web: {image: a, privileged: true, volumes: ['/run/docker.sock:/s', \
                       './api:/api:ro']}}\n";
        fs::write(folder.path().join("compose.yaml"), compose).unwrap();

        let warnings = check(&path).unwrap().warnings;

        let refused = ["volumes: /run/docker.sock", "privileged"].map(|field| {
            format!(
                "compose.yaml: the service `web` has `{field}`: it gives access to the machine; previews refuse it, unless \
                 `previews.allow-privileged` is set"
            )
        });
        assert_eq!(warnings, refused);
    }

    #[test]
    fn json_contains_the_same_problems() {
        let folder = repository();
        let path = folder.path().join("ci/stagely.yaml");
        fs::write(&path, "builds: {api: {context: nowhere}}").unwrap();
        let json = json_text(&path, &check(&path).unwrap()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["valid"], false);
        assert_eq!(json["problems"][0]["path"], "builds.api.context");
        assert_eq!(json["problems"][0]["column"], 25);
    }

    #[test]
    fn an_endless_file_is_too_large() {
        let text = result_text(Path::new("zero"), &check(Path::new("/dev/zero")).unwrap());
        assert!(text.ends_with("the file is larger than 256 KiB"), "{text}");
    }
}
