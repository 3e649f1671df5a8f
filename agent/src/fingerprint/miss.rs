//! Finds the first step that did not come from the cache, and the cause.

use stagely_protocol::{CHANGED_FILES_MAX, CacheMiss, MissCause, Step};

use super::dockerfile::{Dockerfile, Layer};
use super::files::ContextFiles;
use super::inputs::{BuildInputs, normalized};
use super::patterns::Pattern;
use crate::docker::StepName;

/// The first of `steps`, in the Dockerfile's order, that did not come from the cache, and the cause. `None`: all came
/// from the cache. `has_imported_cache`: whether any cache was imported.
///
/// A stage depends only on stages before it. So the cause of the first miss in the Dockerfile's order is in its own
/// stage or outside the build, and not another miss.
pub fn cache_miss(
    previous: Option<&BuildInputs>,
    current: &BuildInputs,
    steps: &[Step],
    has_imported_cache: bool,
) -> Option<CacheMiss> {
    let dockerfile = current.dockerfile();
    let position = |name: &StepName<'_>| {
        let stage = dockerfile.stage(name.stage).unwrap_or(usize::MAX);
        (stage, name.number)
    };
    let missed = steps.iter().filter(|step| !step.cached);
    let missed = missed.filter_map(|step| Some((step, StepName::parse(&step.name)?)));
    let missed = missed.filter(|(_, name)| name.is_cacheable());
    let (step, name) = missed.min_by_key(|(_, name)| position(name))?;
    let cause = match previous {
        // Without any cache every step is built, also without a change.
        Some(_) if !has_imported_cache && !steps.iter().any(|step| step.cached) => {
            MissCause::NoCache
        }
        Some(previous) => MissedStep { previous, current, steps, name }.cause(),
        None if has_imported_cache => MissCause::NotRecorded,
        None => MissCause::NoCache,
    };
    Some(CacheMiss { step: step.name.clone(), cause })
}

/// The first step that did not come from the cache, and the inputs of this build and the build before.
struct MissedStep<'a> {
    previous: &'a BuildInputs,
    current: &'a BuildInputs,
    steps: &'a [Step],
    name: StepName<'a>,
}

impl MissedStep<'_> {
    fn cause(&self) -> MissCause {
        let layer = layer(self.current.dockerfile(), self.steps, self.name);
        let sources = Sources::of(self.name);
        let instruction = || {
            let key = layer?.key;
            (!self.previous.instructions.contains(&key)).then_some(MissCause::Instruction)
        };
        // In COPY and ADD, an argument may change the path, so it is checked before the files.
        let argument = || self.changed_args(layer?);
        let is_run = self.name.keyword == "RUN";
        self.changed_base(&sources)
            .or_else(instruction)
            .or_else(|| if is_run { None } else { argument() })
            .or_else(|| self.changed_files(&sources))
            .or_else(argument)
            .unwrap_or(MissCause::Unknown)
    }

    /// A change of the base image, or of the image that the step copies from. If an earlier step of the stage came
    /// from the cache, the base image has not changed.
    fn changed_base(&self, sources: &Sources) -> Option<MissCause> {
        let dockerfile = self.current.dockerfile();
        let names = self.steps.iter().filter(|step| step.cached);
        let names = names.filter_map(|step| StepName::parse(&step.name));
        let mut cached = names.filter(|name| name.stage == self.name.stage);
        let is_first = !cached.any(|name| name.number < self.name.number);
        let own = is_first.then(|| {
            let mut stage = dockerfile.stages.get(dockerfile.stage(self.name.stage)?)?;
            while let Some(parent) = stage.parent {
                stage = &dockerfile.stages[parent];
            }
            let (old, new) = (&self.previous.bases, &self.current.bases);
            changed_image(old.get(&stage.label)?.clone(), new.get(&stage.label)?.clone())
        });
        own.flatten().or_else(|| {
            let mut images = sources.images.iter().filter(|name| !dockerfile.has_stage(name));
            images.find_map(|image| {
                let with_digest = |inputs: &BuildInputs| {
                    let names = [image.clone(), normalized(image)];
                    let (name, digest) =
                        names.iter().find_map(|name| inputs.images.get_key_value(name))?;
                    Some(format!("{name}@{digest}"))
                };
                changed_image(with_digest(self.previous)?, with_digest(self.current)?)
            })
        })
    }

    fn changed_files(&self, sources: &Sources) -> Option<MissCause> {
        if sources.patterns.is_empty() {
            return None;
        }
        let (old, new) = (&self.previous.files, &self.current.files);
        let mut files = ContextFiles::changes(old, new, |path| sources.include(path));
        let count = files.len();
        files.truncate(CHANGED_FILES_MAX);
        (count > 0).then_some(MissCause::Files { count, files })
    }

    fn changed_args(&self, layer: &Layer) -> Option<MissCause> {
        let value = |inputs: &BuildInputs, name: &String| inputs.args.get(name).copied();
        let is_changed = |name: &&String| value(self.previous, name) != value(self.current, name);
        let names: Vec<_> = layer.args.iter().filter(is_changed).cloned().collect();
        (!names.is_empty()).then_some(MissCause::BuildArgs { names })
    }
}

/// Images with the same digest are the same, also in different repositories, for example of different environments.
fn changed_image(was: String, is: String) -> Option<MissCause> {
    let digest = |image: &str| image.rsplit('@').next().map(str::to_owned);
    (digest(&was) != digest(&is)).then_some(MissCause::BaseImage { was, is })
}

/// The instruction of a step. Its number alone does not determine it: FROM may count or not, and ONBUILD of a base
/// image adds steps. So the numbering is chosen with which most steps of the stage match their instructions.
fn layer<'a>(dockerfile: &'a Dockerfile, steps: &[Step], name: StepName<'_>) -> Option<&'a Layer> {
    let layers = &dockerfile.stages.get(dockerfile.stage(name.stage)?)?.layers;
    let names = steps.iter().filter_map(|step| StepName::parse(&step.name));
    let of_stage: Vec<_> =
        names.filter(|other| other.stage == name.stage && other.is_cacheable()).collect();
    let layer_of = |name: &StepName<'_>, first: usize| {
        layers.get(usize::try_from(name.number).ok()?.checked_sub(first)?)
    };
    let score = |first: &usize| -> usize {
        let step_score = |name: &StepName<'_>| match layer_of(name, *first) {
            Some(layer) if layer.text == name.text => 3,
            Some(layer) if layer.keyword == name.keyword => 1,
            _ => 0,
        };
        of_stage.iter().map(step_score).sum()
    };
    // With equal scores the last is taken, because most stages begin with an image.
    let first = (1..=2).max_by_key(score)?;
    layer_of(&name, first).filter(|layer| layer.keyword == name.keyword)
}

/// The files and images that a step uses from outside its stage.
#[derive(Default)]
struct Sources {
    /// Files of the context.
    patterns: Vec<Pattern>,
    excluded: Vec<Pattern>,
    /// Images, stages and named contexts.
    images: Vec<String>,
}

impl Sources {
    fn of(name: StepName<'_>) -> Self {
        match name.keyword {
            "COPY" | "ADD" => Self::of_copy(name.text),
            "RUN" => Self::of_run(name.text),
            _ => Self::default(),
        }
    }

    fn of_copy(text: &str) -> Self {
        let mut sources = Self::default();
        let (flags, rest) = flags(text);
        for flag in flags {
            match flag.split_once('=') {
                Some(("--from", image)) => sources.images.push(image.to_owned()),
                Some(("--exclude", pattern)) => sources.excluded.extend(Pattern::ignore(pattern)),
                _ => {}
            }
        }
        if sources.images.is_empty() {
            // BuildKit writes the JSON form as `[a, b]`.
            let list = rest.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
            let words: Vec<&str> = match list {
                Some(list) => list.split(',').map(|word| word.trim().trim_matches('"')).collect(),
                None => rest.split_whitespace().collect(),
            };
            let files = words.split_last().map_or(&[][..], |(_, sources)| sources);
            let files = files.iter().filter(|source| !is_remote(source));
            sources.patterns = files.filter_map(|source| Pattern::source(source)).collect();
        }
        sources
    }

    /// The sources of bind mounts. Other kinds of mounts have no content.
    fn of_run(text: &str) -> Self {
        let mut sources = Self::default();
        for mount in flags(text).0.iter().filter_map(|flag| flag.strip_prefix("--mount=")) {
            let options: Vec<_> = mount
                .split(',')
                .map(|option| option.split_once('=').unwrap_or((option, "")))
                .collect();
            let option = |names: &[&str]| {
                let found = options.iter().find(|(name, _)| names.contains(name));
                found.map(|(_, value)| *value)
            };
            if option(&["type"]).is_some_and(|kind| kind != "bind") {
                continue;
            }
            match option(&["from"]) {
                Some(image) => sources.images.push(image.to_owned()),
                None => sources
                    .patterns
                    .extend(Pattern::source(option(&["source", "src"]).unwrap_or("."))),
            }
        }
        sources
    }

    /// Whether the step uses the file at `path`.
    fn include(&self, path: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(path));
        any(&self.patterns) && !any(&self.excluded)
    }
}

/// The flags at the beginning of `text`, and what follows them.
fn flags(text: &str) -> (Vec<&str>, &str) {
    let (mut flags, mut rest) = (Vec::new(), text.trim());
    while rest.starts_with("--") {
        let (flag, others) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        flags.push(flag);
        rest = others.trim_start();
    }
    (flags, rest)
}

/// Whether a source is a here-document, or an address that ADD fetches.
fn is_remote(source: &str) -> bool {
    source.starts_with("<<") || source.contains("://") || source.starts_with("git@")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use stagely_protocol::BuildArgs;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::docker::{BaseImage, ImageUse};

    /// Inputs of a build with one stage, whose steps `BuildKit` numbers from 2.
    fn build(dockerfile: &str, args: &[(&str, &str)]) -> BuildInputs {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Dockerfile");
        fs::write(&path, dockerfile).unwrap();
        for name in ["a.c", "b.c", "c d.txt"] {
            fs::write(folder.path().join(name), "one").unwrap();
        }
        let args = args.iter().map(|(name, value)| (String::from(*name), String::from(*value)));
        let (args, stop) = (BuildArgs(args.collect()), CancellationToken::new());
        BuildInputs::read(folder.path(), &path, &args, &stop).unwrap()
    }

    fn cause(was: &BuildInputs, is: &BuildInputs, cached: &[&str], missed: &str) -> MissCause {
        let step = |name: &str, cached| Step { name: name.to_owned(), seconds: 0.0, cached };
        let mut steps: Vec<_> = cached.iter().map(|name| step(name, true)).collect();
        steps.push(step(missed, false));
        let was = BuildInputs::from_fingerprint(&was.to_fingerprint().unwrap()).unwrap();
        let miss = cache_miss(Some(&was), is, &steps, true).unwrap();
        assert_eq!(miss.step, missed);
        miss.cause
    }

    fn args(names: &[&str]) -> MissCause {
        MissCause::BuildArgs { names: names.iter().map(|name| String::from(*name)).collect() }
    }

    #[test]
    fn a_changed_instruction_and_a_changed_argument_are_different_causes() {
        let text = "FROM a\nARG MODE=x\nARG OTHER\nENV DIR=/$MODE\nCOPY a.c $DIR/\nRUN make \\\n  # why\n  $MODE\n";
        let was = build(text, &[]);
        let copy = "[2/3] COPY a.c /y/";
        let run = "[3/3] RUN make    y";
        let is = build(text, &[("MODE", "y")]);
        assert_eq!(cause(&was, &is, &[], copy), args(&["MODE"]));
        assert_eq!(cause(&was, &is, &["[2/3] COPY a.c /y/"], run), args(&["MODE"]));
        // Its default counts as well, and RUN sees every argument.
        let is = build(&text.replace("=x", "=y"), &[("OTHER", "1")]);
        assert_eq!(cause(&was, &is, &[copy], run), args(&["MODE", "OTHER"]));
        assert_eq!(cause(&was, &is, &[], copy), args(&["MODE"]));
        let is = build(&text.replace("make", "cmake"), &[("MODE", "y")]);
        assert_eq!(cause(&was, &is, &[copy], "[3/3] RUN cmake    y"), MissCause::Instruction);
        // A new setting before the step, and a new step before it.
        let is = build(&text.replace("RUN", "USER 1\nRUN"), &[]);
        assert_eq!(cause(&was, &is, &[copy], "[3/3] RUN make    x"), MissCause::Instruction);
        let is = build(&text.replace("ENV", "RUN first\nENV"), &[]);
        assert_eq!(cause(&was, &is, &[], "[2/4] RUN first"), MissCause::Instruction);
        assert_eq!(cause(&was, &was, &[copy], "[3/3] RUN make    x"), MissCause::Unknown);
    }

    #[test]
    fn a_here_document_is_part_of_its_instruction() {
        let text = "FROM a\nCOPY <<EOF <<\"two\" /d/\nFROM b\nEOF\ntext\ntwo\nRUN <<-X\n\tone\n\tX\nRUN b\n";
        let was = build(text, &[]);
        let copy = "[2/4] COPY <<EOF <<two /d/";
        let is = build(&text.replace("text", "other"), &[]);
        assert_eq!(cause(&was, &is, &[], copy), MissCause::Instruction);
        let is = build(&text.replace("\tone", "\ttwo"), &[]);
        assert_eq!(cause(&was, &is, &[copy], "[3/4] RUN <<-X (one)"), MissCause::Instruction);
        assert_eq!(cause(&was, &was, &[copy], "[4/4] RUN b"), MissCause::Unknown);
    }

    #[test]
    fn quoted_text_is_no_here_document() {
        let text = "FROM a\nRUN echo \"a <<b c\" ' <<d' \\\" <<\"e\"\none\ne\nRUN b\n";
        let was = build(text, &[]);
        let is = build(&text.replace("RUN b", "RUN c"), &[]);
        let first = "[2/3] RUN echo \"a <<b c\" ' <<d' \\\" <<\"e\" (one)";
        assert_eq!(cause(&was, &is, &[first], "[3/3] RUN c"), MissCause::Instruction);
        assert_eq!(was.instructions.len(), 2);
    }

    #[test]
    fn a_single_stage_may_have_a_label_in_its_steps() {
        let text = "FROM a AS app\nARG MODE=x\nRUN make $MODE\nCOPY --from=b /b /b\n";
        let (was, is) = (build(text, &[]), build(text, &[("MODE", "y")]));
        let run = "[app 2/3] RUN make y";
        assert_eq!(cause(&was, &is, &[], run), args(&["MODE"]));
        let image = |digest: &str| BaseImage {
            used_by: ImageUse::Stage("app".to_owned()),
            reference: "docker.io/library/a:latest".to_owned(),
            digest: digest.to_owned(),
        };
        let copied = |digest| BaseImage {
            used_by: ImageUse::Unknown,
            reference: "docker.io/library/b:latest".to_owned(),
            ..image(digest)
        };
        let with = |images: &[BaseImage]| {
            let mut inputs = build(text, &[]);
            inputs.add_images(images);
            inputs
        };
        let was = with(&[image("sha256:00"), copied("sha256:00")]);
        let is = with(&[image("sha256:01"), copied("sha256:00")]);
        let changed = |name: &str| MissCause::BaseImage {
            was: format!("docker.io/library/{name}:latest@sha256:00"),
            is: format!("docker.io/library/{name}:latest@sha256:01"),
        };
        assert_eq!(cause(&was, &is, &[], run), changed("a"));
        let is = with(&[image("sha256:00"), copied("sha256:01")]);
        assert_eq!(cause(&was, &is, &[run], "[app 3/3] COPY --from=b /b /b"), changed("b"));
        let elsewhere =
            BaseImage { reference: "registry/other/a".to_owned(), ..image("sha256:00") };
        let is = with(&[elsewhere, copied("sha256:00")]);
        assert_eq!(cause(&was, &is, &[], run), MissCause::Unknown);
    }

    #[test]
    fn without_an_imported_cache_no_change_is_the_cause() {
        let was = build("FROM a\nRUN b\nRUN c\n", &[]);
        let is = build("FROM a\nRUN d\nRUN c\n", &[]);
        let step = |name: &str, cached| Step { name: name.to_owned(), seconds: 0.0, cached };
        let mut steps = [step("[2/3] RUN d", false), step("[3/3] RUN c", false)];
        let miss = |steps: &[Step]| cache_miss(Some(&was), &is, steps, false).unwrap().cause;
        assert_eq!(miss(&steps), MissCause::NoCache);
        // The engine's own cache had one of the steps.
        steps[1].cached = true;
        assert_eq!(miss(&steps), MissCause::Instruction);
    }

    #[test]
    fn secret_arguments_leave_no_trace() {
        let text =
            "FROM a\nARG PIN_TOKEN\nARG URL=http://$PIN_TOKEN@host\nARG PIN=7\nRUN curl $URL\n";
        let was = build(text, &[("PIN_TOKEN", "1234")]);
        let is = build(text, &[("PIN_TOKEN", "9999")]);
        assert_eq!(was, is, "nothing depends on the value");
        assert_eq!(cause(&was, &is, &[], "[2/2] RUN curl http://9999@host"), MissCause::Unknown);
        assert_eq!(was.args.keys().collect::<Vec<_>>(), ["PIN"]);
    }

    #[test]
    fn sources_are_read_from_every_form() {
        let includes =
            |name: &str, path: &str| Sources::of(StepName::parse(name).unwrap()).include(path);
        assert!(includes("[2/3] COPY --chown=1:1 --link src/*.c include/ ./", "include/a/b.h"));
        assert!(!includes("[2/3] COPY --chown=1:1 src/*.c include/ ./", "src/a.h"));
        assert!(includes("[2/3] COPY [c d.txt, a.c, /x y/]", "c d.txt"));
        assert!(!includes("[2/3] COPY [c d.txt, /x y/]", "x y"));
        assert!(!includes("[2/3] COPY --from=builder . .", "a.c"));
        assert!(!includes("[2/3] COPY <<EOF <<two /files/", "a.c"));
        assert!(!includes("[2/3] ADD https://host/a.c git@host:a.git /", "a.c"));
        assert!(includes("[2/3] COPY --exclude=*.md --exclude=**/t . .", "a/b.md"));
        assert!(!includes("[2/3] COPY --exclude=*.md --exclude=**/t . .", "b.md"));
        assert!(!includes("[2/3] COPY --exclude=**/t . .", "a/t/b"));
        assert!(includes("[2/3] COPY --parents ./a/./b/*.c /", "a/b/x.c"));
        assert!(includes(
            "[2/3] RUN --mount=type=bind,source=include,target=/i cat",
            "include/b.h"
        ));
        assert!(includes("[2/3] RUN --mount=target=/src make", "a.c"));
        assert!(!includes("[2/3] RUN --mount=type=cache,target=/c make", "a.c"));
        assert!(!includes("[2/3] RUN --mount=from=b,target=/c make --mount=x", "a.c"));
        assert!(!includes("[2/3] RUN make", "a.c"));
    }
}
