//! Finds the first step that did not come from the cache, and what is different about it.

use stagely_protocol::{CHANGED_FILES_MAX, CacheMiss, MissCause, Step};

use super::dockerfile::{Dockerfile, Layer};
use super::files::Files;
use super::patterns::Pattern;
use super::{Inputs, normalized};
use crate::docker::StepName;

/// The first of `steps` that did not come from the cache, by the Dockerfile's order, and why.
/// `None`: all came from it. `cache_found` says whether any cache could be imported.
///
/// A stage depends on stages before it alone, so the first miss in the Dockerfile's order has its
/// cause in its own stage or outside the build, and not in another miss.
pub fn cache_miss(
    previous: Option<&Inputs>,
    current: &Inputs,
    steps: &[Step],
    cache_found: bool,
) -> Option<CacheMiss> {
    let dockerfile = &current.dockerfile.0;
    let place = |name: &StepName<'_>| {
        let stage = dockerfile.stage(name.stage).unwrap_or(usize::MAX);
        (stage, name.number)
    };
    let missed = steps.iter().filter(|step| !step.cached);
    let missed = missed.filter_map(|step| Some((step, StepName::parse(&step.name)?)));
    let missed = missed.filter(|(_, name)| name.is_cacheable());
    let (step, name) = missed.min_by_key(|(_, name)| place(name))?;
    let cause = match previous {
        // With nothing to take steps from, no change is why a step was built.
        Some(_) if !cache_found && !steps.iter().any(|step| step.cached) => MissCause::NoCache,
        Some(previous) => Comparison { previous, current, steps, name }.cause(),
        None if cache_found => MissCause::Unknown,
        None => MissCause::NoCache,
    };
    Some(CacheMiss { step: step.name.clone(), cause })
}

/// One missed step between two builds.
struct Comparison<'a> {
    previous: &'a Inputs,
    current: &'a Inputs,
    steps: &'a [Step],
    name: StepName<'a>,
}

impl Comparison<'_> {
    fn cause(&self) -> MissCause {
        let layer = layer(&self.current.dockerfile.0, self.steps, self.name);
        let sources = Sources::of(self.name);
        let instruction = || {
            let key = layer?.key;
            (!self.previous.instructions.contains(&key)).then_some(MissCause::Instruction)
        };
        // What an argument puts into the text of COPY or ADD matters more than the files there.
        let argument = || self.changed_args(layer?);
        let is_run = self.name.keyword == "RUN";
        self.changed_base(&sources)
            .or_else(instruction)
            .or_else(|| if is_run { None } else { argument() })
            .or_else(|| self.changed_files(&sources))
            .or_else(argument)
            .unwrap_or(MissCause::Unknown)
    }

    /// The image that the stage begins with, unless a step before came from the cache, which then
    /// has steps on that image; or the image that the step copies from.
    fn changed_base(&self, sources: &Sources) -> Option<MissCause> {
        let dockerfile = &self.current.dockerfile.0;
        let names = self.steps.iter().filter(|step| step.cached);
        let names = names.filter_map(|step| StepName::parse(&step.name));
        let mut cached = names.filter(|name| name.stage == self.name.stage);
        let is_first = !cached.any(|name| name.number < self.name.number);
        let own = is_first.then(|| {
            let mut stage = dockerfile.stages.get(dockerfile.stage(self.name.stage)?)?;
            while let Some(parent) = stage.parent {
                stage = &dockerfile.stages[parent];
            }
            let (was, is) = (&self.previous.bases, &self.current.bases);
            changed_image(was.get(&stage.label)?.clone(), is.get(&stage.label)?.clone())
        });
        own.flatten().or_else(|| {
            let mut images = sources.images.iter().filter(|name| !dockerfile.has_stage(name));
            images.find_map(|image| {
                let with_digest = |inputs: &Inputs| {
                    let name = [image.clone(), normalized(image)];
                    let known = name.iter().find_map(|name| inputs.images.get_key_value(name))?;
                    Some(format!("{}@{}", known.0, known.1))
                };
                changed_image(with_digest(self.previous)?, with_digest(self.current)?)
            })
        })
    }

    fn changed_files(&self, sources: &Sources) -> Option<MissCause> {
        if sources.patterns.is_empty() {
            return None;
        }
        let (was, is) = (&self.previous.files, &self.current.files);
        let mut files = Files::changes(was, is, |path| sources.mean(path));
        let count = files.len();
        files.truncate(CHANGED_FILES_MAX);
        (count > 0).then_some(MissCause::Files { count, files })
    }

    fn changed_args(&self, layer: &Layer) -> Option<MissCause> {
        let value = |inputs: &Inputs, name: &String| inputs.args.get(name).copied();
        let is_other = |name: &&String| value(self.previous, name) != value(self.current, name);
        let names: Vec<_> = layer.args.iter().filter(is_other).cloned().collect();
        (!names.is_empty()).then_some(MissCause::BuildArgs { names })
    }
}

/// The same digest is the same image, in whatever repository: that of another environment, for one.
fn changed_image(was: String, is: String) -> Option<MissCause> {
    let digest = |image: &str| image.rsplit('@').next().map(str::to_owned);
    (digest(&was) != digest(&is)).then_some(MissCause::BaseImage { was, is })
}

/// The instruction that a step comes from. FROM counts in a step's number or not, and ONBUILD of a
/// base image adds steps; so the steps of the stage are laid beside its instructions.
fn layer<'a>(dockerfile: &'a Dockerfile, steps: &[Step], name: StepName<'_>) -> Option<&'a Layer> {
    let layers = &dockerfile.stages.get(dockerfile.stage(name.stage)?)?.layers;
    let names = steps.iter().filter_map(|step| StepName::parse(&step.name));
    let of_stage: Vec<_> = names.filter(|it| it.stage == name.stage && it.is_cacheable()).collect();
    let at = |name: &StepName<'_>, first: usize| {
        layers.get(usize::try_from(name.number).ok()?.checked_sub(first)?)
    };
    let fit = |first: &usize| -> usize {
        let likeness = |name: &StepName<'_>| match at(name, *first) {
            Some(layer) if layer.text == name.text => 3,
            Some(layer) if layer.keyword == name.keyword => 1,
            _ => 0,
        };
        of_stage.iter().map(likeness).sum()
    };
    // Of equals the last is taken: the usual stage begins with an image.
    let first = (1..=2).max_by_key(fit)?;
    at(&name, first).filter(|layer| layer.keyword == name.keyword)
}

/// What a step takes from outside its stage.
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
            let words: Vec<&str> = match rest.strip_prefix('[').and_then(|it| it.strip_suffix(']'))
            {
                Some(list) => list.split(',').map(|it| it.trim().trim_matches('"')).collect(),
                None => rest.split_whitespace().collect(),
            };
            let files = words.split_last().map_or(&[][..], |(_, sources)| sources);
            let files = files.iter().filter(|source| !is_remote(source));
            sources.patterns = files.filter_map(|source| Pattern::source(source)).collect();
        }
        sources
    }

    /// Bind mounts; other kinds bring no content.
    fn of_run(text: &str) -> Self {
        let mut sources = Self::default();
        for mount in flags(text).0.iter().filter_map(|flag| flag.strip_prefix("--mount=")) {
            let options: Vec<_> =
                mount.split(',').map(|it| it.split_once('=').unwrap_or((it, ""))).collect();
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

    fn mean(&self, path: &str) -> bool {
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

/// Whether a source is a here-document, or something that ADD fetches.
fn is_remote(source: &str) -> bool {
    source.starts_with("<<") || source.contains("://") || source.starts_with("git@")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use stagely_protocol::BuildArgs;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::docker::{BaseImage, BaseUser};

    /// One stage on an image; each step's number begins at 2, as `BuildKit` counts.
    fn build(dockerfile: &str, args: &[(&str, &str)]) -> Inputs {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Dockerfile");
        fs::write(&path, dockerfile).unwrap();
        for name in ["a.c", "b.c", "c d.txt"] {
            fs::write(folder.path().join(name), "one").unwrap();
        }
        let args = args.iter().map(|(name, value)| (String::from(*name), String::from(*value)));
        let (args, stop) = (BuildArgs(args.collect()), CancellationToken::new());
        Inputs::read(folder.path(), &path, &args, &stop).unwrap()
    }

    fn cause(was: &Inputs, is: &Inputs, cached: &[&str], missed: &str) -> MissCause {
        let step = |name: &str, cached| Step { name: name.to_owned(), seconds: 0.0, cached };
        let mut steps: Vec<_> = cached.iter().map(|name| step(name, true)).collect();
        steps.push(step(missed, false));
        let was = Inputs::open(&was.seal().unwrap()).unwrap();
        let miss = cache_miss(Some(&was), is, &steps, true).unwrap();
        assert_eq!(miss.step, missed);
        miss.cause
    }

    fn args(names: &[&str]) -> MissCause {
        MissCause::BuildArgs { names: names.iter().map(|name| String::from(*name)).collect() }
    }

    #[test]
    fn a_changed_instruction_is_told_from_a_changed_argument() {
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
        // A setting before it, and the order of steps.
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
            user: BaseUser::Stage("app".to_owned()),
            reference: "docker.io/library/a:latest".to_owned(),
            digest: digest.to_owned(),
        };
        let copied = |digest| BaseImage {
            user: BaseUser::Some,
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
    fn where_nothing_could_be_imported_no_change_is_blamed() {
        let was = build("FROM a\nRUN b\nRUN c\n", &[]);
        let is = build("FROM a\nRUN d\nRUN c\n", &[]);
        let step = |name: &str, cached| Step { name: name.to_owned(), seconds: 0.0, cached };
        let mut steps = [step("[2/3] RUN d", false), step("[3/3] RUN c", false)];
        let miss = |steps: &[Step]| cache_miss(Some(&was), &is, steps, false).unwrap().cause;
        assert_eq!(miss(&steps), MissCause::NoCache);
        // The engine's own cache had something.
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
        let means = |name: &str, path: &str| Sources::of(StepName::parse(name).unwrap()).mean(path);
        assert!(means("[2/3] COPY --chown=1:1 --link src/*.c include/ ./", "include/a/b.h"));
        assert!(!means("[2/3] COPY --chown=1:1 src/*.c include/ ./", "src/a.h"));
        assert!(means("[2/3] COPY [c d.txt, a.c, /x y/]", "c d.txt"));
        assert!(!means("[2/3] COPY [c d.txt, /x y/]", "x y"));
        assert!(!means("[2/3] COPY --from=builder . .", "a.c"));
        assert!(!means("[2/3] COPY <<EOF <<two /files/", "a.c"));
        assert!(!means("[2/3] ADD https://host/a.c git@host:a.git /", "a.c"));
        assert!(means("[2/3] COPY --exclude=*.md --exclude=**/t . .", "a/b.md"));
        assert!(!means("[2/3] COPY --exclude=*.md --exclude=**/t . .", "b.md"));
        assert!(!means("[2/3] COPY --exclude=**/t . .", "a/t/b"));
        assert!(means("[2/3] COPY --parents ./a/./b/*.c /", "a/b/x.c"));
        assert!(means("[2/3] RUN --mount=type=bind,source=include,target=/i cat", "include/b.h"));
        assert!(means("[2/3] RUN --mount=target=/src make", "a.c"));
        assert!(!means("[2/3] RUN --mount=type=cache,target=/c make", "a.c"));
        assert!(!means("[2/3] RUN --mount=from=b,target=/c make --mount=x", "a.c"));
        assert!(!means("[2/3] RUN make", "a.c"));
    }
}
