//! The requests to the registry, and the events that follow. `tests/registry.rs` asks a real registry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::StatusCode;
use stagely_protocol::ImageRef;
use stagely_state::ids::{EnvironmentId, ProjectId, RunId};
use stagely_state::{ClosedBy, Environment, EnvironmentState, GoodImage, Project};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::config::Config;
use crate::core::fixtures::{self, digest};
use crate::core::records::{Records, SharedRecords};
use crate::core::store::Store;

const ENVIRONMENT: EnvironmentId = EnvironmentId::from_bits(1);

type Calls = Arc<Mutex<Vec<String>>>;

/// A registry that has every tag, lists two tags of each repository, accepts every deletion, and returns no digest.
async fn registry() -> (String, Calls) {
    let calls = Calls::default();
    let answer = async |Shared(calls): Shared<Calls>, request: Request| {
        let path = request.uri().path();
        calls.lock().unwrap().push(format!("{} {path}", request.method()));
        let status = if path.contains("sha256:") { StatusCode::NOT_FOUND } else { StatusCode::OK };
        (status, r#"{"tags":["app","app.run"]}"#)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&calls));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address.to_string(), calls)
}

/// The effects of a core with one environment, changed by `change`.
fn effects(registry: &str, change: impl FnOnce(&mut Environment)) -> (Effects, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
    let mut environment = Environment::new(ENVIRONMENT, ProjectId::from_bits(1), "pr-7".to_owned());
    change(&mut environment);
    let mut records = Records::default();
    records.environments.insert(ENVIRONMENT, environment);
    let project = Project::new(ProjectId::from_bits(1), "app".to_owned(), String::new());
    records.projects.insert(project.id, project);
    let mut config = Config::default();
    config.registry.url = Some(registry.to_owned());
    let records = SharedRecords::new(records);
    (fixtures::effects(folder.path(), config, store, records), folder)
}

fn image(registry: &str, name: &str) -> ImageRef {
    format!("{registry}/app/{name}").parse().unwrap()
}

#[tokio::test]
async fn a_tag_that_cannot_be_moved_is_an_outcome_too() {
    let (registry, calls) = registry().await;
    let good = GoodImage {
        run: RunId::from_bits(1),
        commit: "c".repeat(40).parse().unwrap(),
        image: image(&registry, "pr-7:app.run"),
        digest: digest(),
        tag: image(&registry, "pr-7:app"),
        with_set: false,
    };
    let images = BTreeMap::from([("app".into(), good)]);
    let (effects, _folder) = effects(&registry, |environment| environment.images = images);
    let tag = |variant: &str| Effect::Tag { environment: ENVIRONMENT, variant: variant.into() };

    let event = effects.perform(tag("app")).await.unwrap();

    let Event::ImageTagged { environment, variant, digest: named, result } = event else {
        panic!("{event:?}")
    };
    assert_eq!((environment, variant.as_str(), named), (ENVIRONMENT, "app", digest()));
    assert!(result.unwrap_err().contains("does not have"));
    assert_eq!(*calls.lock().unwrap(), [format!("GET /v2/app/pr-7/manifests/{}", digest())]);
    assert!(effects.perform(tag("gone")).await.is_none());
}

#[tokio::test]
async fn all_effects_but_those_of_machines_can_be_given_up_with_a_reason() {
    let refs = BTreeSet::from([image("registry.example", "cache:app.pr-7")]);
    let (effects, _folder) = effects("registry.example", |environment| {
        environment.cache_refs = refs.clone();
        environment.report.wanted = 3;
    });
    let (environment, run) = (ENVIRONMENT, RunId::from_bits(1));
    let given_up = |effect| effects.given_up(&effect);

    let Some(Event::RunPlanned { plan: Err(failure), .. }) = given_up(Effect::Plan { run }) else {
        panic!("planned")
    };
    assert!(failure.message.contains("twice"), "{failure:?}");
    let Some(Event::CleanedUp { refs: gone, .. }) = given_up(Effect::CleanUp { environment })
    else {
        panic!("cleaned")
    };
    assert_eq!(gone, refs);
    let Some(Event::Reported { wanted: 3, result: Err(reason), .. }) =
        given_up(Effect::Report { environment })
    else {
        panic!("reported")
    };
    assert!(reason.contains("twice"), "{reason}");
    let machine = MachineId::from_bits(1);
    assert!(given_up(Effect::Terminate { machine }).is_none());
    assert!(given_up(Effect::Launch { machine }).is_none());
}

#[tokio::test]
async fn the_caches_of_a_closed_environment_are_deleted_and_those_of_an_open_one_are_not() {
    let (registry, calls) = registry().await;
    let refs: BTreeSet<ImageRef> = [
        image(&registry, "cache:app.pr-7"),
        // Written before another registry was configured: nobody can delete it here.
        "elsewhere.example/app/cache:app.pr-7".parse().unwrap(),
    ]
    .into();
    let closed = EnvironmentState::closed(ClosedBy::Github);
    for state in [EnvironmentState::OPEN, closed] {
        let (effects, _folder) = effects(&registry, |environment| {
            environment.state = state;
            environment.cache_refs = refs.clone();
        });

        let event = effects.perform(Effect::CleanUp { environment: ENVIRONMENT }).await;

        let Some(Event::CleanedUp { refs: gone, .. }) = event else { panic!("{event:?}") };
        assert_eq!(gone, if state == closed { refs.clone() } else { [].into() });
    }
    let path = "/v2/app/cache/manifests/app.pr-7";
    assert_eq!(*calls.lock().unwrap(), [format!("HEAD {path}"), format!("DELETE {path}")]);
}

#[tokio::test]
async fn the_images_of_a_closed_pull_request_are_deleted_and_no_others() {
    let (registry, calls) = registry().await;
    let clean_up = async |state, pull_request, has_images| {
        let (effects, _folder) = effects(&registry, |environment| {
            environment.state = state;
            environment.pull_request = pull_request;
            environment.has_images = has_images;
        });
        let event = effects.perform(Effect::CleanUp { environment: ENVIRONMENT }).await;
        let Some(Event::CleanedUp { .. }) = event else { panic!("{event:?}") };
    };

    let closed = EnvironmentState::closed(ClosedBy::Github);
    clean_up(EnvironmentState::OPEN, Some(7), true).await;
    clean_up(closed, None, true).await;
    clean_up(closed, Some(7), false).await;
    assert_eq!(calls.lock().unwrap().len(), 0);

    clean_up(closed, Some(7), true).await;

    let path = |tag: &str| format!("/v2/app/pr-7/manifests/{tag}");
    let deleted = ["app", "app.run"]
        .map(|tag| [format!("HEAD {}", path(tag)), format!("DELETE {}", path(tag))]);
    let listed = vec!["GET /v2/app/pr-7/tags/list".to_owned()];
    assert_eq!(*calls.lock().unwrap(), [listed, deleted.concat()].concat());
}

#[tokio::test]
async fn an_environment_that_is_opened_while_its_images_are_deleted_keeps_the_rest() {
    let records: Arc<Mutex<Option<SharedRecords>>> = Arc::default();
    let calls = Calls::default();
    let answer = {
        let (records, calls) = (Arc::clone(&records), Arc::clone(&calls));
        move |request: Request| {
            let call = format!("{} {}", request.method(), request.uri().path());
            if call.starts_with("DELETE") {
                let records = records.lock().unwrap();
                records.as_ref().unwrap().write(|records| {
                    let environment = records.environments.get_mut(&ENVIRONMENT).unwrap();
                    environment.state = EnvironmentState::OPEN;
                });
            }
            calls.lock().unwrap().push(call);
            std::future::ready(r#"{"tags":["app","app.run"]}"#)
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, app).await });
    let (effects, _folder) = effects(&address, |environment| {
        environment.state = EnvironmentState::closed(ClosedBy::Github);
        environment.pull_request = Some(7);
        environment.has_images = true;
    });
    *records.lock().unwrap() = Some(effects.cleaner.records.clone());

    effects.perform(Effect::CleanUp { environment: ENVIRONMENT }).await.unwrap();

    let deleted = calls.lock().unwrap().iter().filter(|call| call.starts_with("DELETE")).count();
    assert_eq!(deleted, 1);
}
