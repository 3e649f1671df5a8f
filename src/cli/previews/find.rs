//! Finds the preview that a person names.

use anyhow::{Context as _, bail};
use stagely_manifest::suggest::closest;

use super::WhichPreview;
use crate::api::{ListPreviews, PreviewView};
use crate::client::Client;

/// A preview and the core that has it.
pub(super) struct FoundPreview {
    pub(super) client: Client,
    pub(super) preview: PreviewView,
}

/// Finds the preview in all cores that `which` stands for.
///
/// # Errors
/// There is none, or several have the name; core cannot be reached.
pub(super) async fn find(which: &WhichPreview) -> anyhow::Result<FoundPreview> {
    let list =
        ListPreviews { project: which.project.clone(), all: true, ..ListPreviews::default() };
    let mut all = Vec::new();
    for client in which.server.all_running()? {
        let previews = client.previews(&list).await?.into_iter();
        all.extend(previews.map(|preview| (client.clone(), preview)));
    }
    let views: Vec<&PreviewView> = all.iter().map(|(_, preview)| preview).collect();
    let id = select(&views, &which.name)?.id;
    let found = all.into_iter().find(|(_, preview)| preview.id == id);
    let (client, preview) = found.context("a list has what was selected from it")?;
    Ok(FoundPreview { client, preview })
}

/// The preview of this name. One that has ended gives way to an open one.
fn select<'a>(previews: &[&'a PreviewView], name: &str) -> anyhow::Result<&'a PreviewView> {
    let named = previews.iter().filter(|preview| is_named(preview, name)).copied();
    let (open, ended): (Vec<_>, Vec<_>) = named.partition(|preview| preview.status.is_open());
    match if open.is_empty() { &*ended } else { &*open } {
        [] => bail!(unknown(previews, name)),
        [preview] => Ok(preview),
        several => {
            let labels: Vec<&str> = several.iter().map(|preview| &*preview.label).collect();
            bail!("{name} may be {}; name one of them, or add --project", labels.join(" or "))
        }
    }
}

fn is_named(preview: &PreviewView, name: &str) -> bool {
    let has_path = |(project, environment): (&str, &str)| {
        preview.project == project && preview.environment == environment
    };
    preview.environment == name
        || preview.label == name
        || preview.id.to_string() == name
        || name.split_once('/').is_some_and(has_path)
}

fn unknown(previews: &[&PreviewView], name: &str) -> String {
    let names = previews.iter().flat_map(|preview| [&*preview.environment, &*preview.label]);
    let advice = match closest(name, names) {
        Some(name) => format!("did you mean {name}?"),
        None if previews.is_empty() => "there are none".to_owned(),
        None => "`stagely previews --all` lists them".to_owned(),
    };
    format!("there is no preview {name}; {advice}")
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use stagely_state::ids::{EnvironmentId, PreviewId};
    use stagely_state::{Access, Timestamp};

    use super::*;
    use crate::api::PreviewStatus;

    /// A live preview of an environment.
    pub(in crate::cli::previews) fn preview(project: &str, environment: &str) -> PreviewView {
        PreviewView {
            id: PreviewId::from_bits(environment.bytes().map(u128::from).sum()),
            label: format!("{environment}-{project}"),
            project: project.to_owned(),
            environment_id: EnvironmentId::from_bits(1),
            environment: environment.to_owned(),
            pull_request: None,
            status: PreviewStatus::Live,
            problem: None,
            commit: None,
            run_id: None,
            generation: Some(1),
            deployment: None,
            rebuild_id: None,
            access: Some(Access::Link),
            url: None,
            urls: BTreeMap::new(),
            direct_urls: BTreeMap::new(),
            images: BTreeMap::new(),
            machine_id: None,
            provider: None,
            services: Vec::new(),
            warnings: Vec::new(),
            disk_free_bytes: None,
            archive: None,
            data_loss: None,
            created_at: Timestamp(0),
            active_at: Timestamp(0),
            sleeps_at: None,
            ends_at: None,
        }
    }

    fn found(previews: &[PreviewView], name: &str) -> Result<String, String> {
        let previews: Vec<&PreviewView> = previews.iter().collect();
        let found = select(&previews, name);
        found.map(|preview| preview.label.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_preview_has_several_names() {
        let previews = [preview("app", "pr-7"), preview("app", "main")];
        let id = previews[0].id.to_string();
        for name in ["pr-7", "pr-7-app", "app/pr-7", &id] {
            assert_eq!(found(&previews, name).as_deref(), Ok("pr-7-app"), "{name}");
        }
    }

    #[test]
    fn a_name_of_several_previews_is_refused() {
        let mut previews = [preview("app", "pr-7"), preview("shop", "pr-7")];
        let error = found(&previews, "pr-7").unwrap_err();
        assert!(error.starts_with("pr-7 may be pr-7-app or pr-7-shop; name one"), "{error}");
        previews[0].status = PreviewStatus::Ended;
        assert_eq!(found(&previews, "pr-7").as_deref(), Ok("pr-7-shop"));
        assert_eq!(found(&previews, "pr-7-app").as_deref(), Ok("pr-7-app"));
    }

    #[test]
    fn a_mistyped_name_gets_a_suggestion() {
        let previews = [preview("app", "pr-7"), preview("app", "main")];
        let error = |name| found(&previews, name).unwrap_err();
        assert_eq!(error("mian"), "there is no preview mian; did you mean main?");
        assert!(error("something").ends_with("`stagely previews --all` lists them"));
        assert_eq!(found(&[], "x").unwrap_err(), "there is no preview x; there are none");
    }
}
