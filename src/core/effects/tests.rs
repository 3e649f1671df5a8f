//! What the registry is asked for, and what the state is told of it. `tests/registry.rs` asks a real one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::StatusCode;
use stagely_agent::protocol::ImageRef;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::core::fixtures::{self, digest};
use crate::core::records::Records;
use crate::core::state::{Environment, GoodImage};
use crate::core::store::Store;
use crate::ids::{EnvironmentId, ProjectId, RunId};

const ENVIRONMENT: EnvironmentId = EnvironmentId::from_bits(1);

type Calls = Arc<Mutex<Vec<String>>>;

/// A registry that has every tag, deletes what it is asked to, and no digest.
async fn registry() -> (String, Calls) {
    let calls = Calls::default();
    let answer = async |Shared(calls): Shared<Calls>, request: Request| {
        let path = request.uri().path();
        calls.lock().unwrap().push(format!("{} {path}", request.method()));
        if path.contains("sha256:") { StatusCode::NOT_FOUND } else { StatusCode::OK }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&calls));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address.to_string(), calls)
}

/// Effects of a core whose one environment is as `change` makes it.
fn effects(registry: &str, change: impl FnOnce(&mut Environment)) -> (Effects, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
    let mut environment = Environment::new(ENVIRONMENT, ProjectId::from_bits(1), "pr-7".to_owned());
    change(&mut environment);
    let mut records = Records::default();
    records.environments.insert(ENVIRONMENT, environment);
    let mut config = Config::default();
    config.registry.url = registry.to_owned();
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
    let images = BTreeMap::from([("app".to_owned(), good)]);
    let (effects, _folder) = effects(&registry, |environment| environment.images = images);
    let tag = |variant: &str| Effect::Tag { environment: ENVIRONMENT, variant: variant.to_owned() };

    let told = effects.perform(tag("app")).await.unwrap();

    let Event::ImageTagged { environment, variant, digest: named, result } = told else {
        panic!("{told:?}")
    };
    assert_eq!((environment, &*variant, named), (ENVIRONMENT, "app", digest()));
    assert!(result.unwrap_err().contains("does not have"));
    assert_eq!(*calls.lock().unwrap(), [format!("GET /v2/app/pr-7/manifests/{}", digest())]);
    assert!(effects.perform(tag("gone")).await.is_none());
}

#[tokio::test]
async fn the_caches_of_a_closed_environment_are_deleted_and_those_of_an_open_one_are_not() {
    let (registry, calls) = registry().await;
    let refs: std::collections::BTreeSet<ImageRef> = [
        image(&registry, "cache:app.pr-7"),
        // Written before another registry was configured: nobody can delete it here.
        "elsewhere.example/app/cache:app.pr-7".parse().unwrap(),
    ]
    .into();
    for closed in [false, true] {
        let (effects, _folder) = effects(&registry, |environment| {
            environment.closed = closed;
            environment.cache_refs = refs.clone();
        });

        let told = effects.perform(Effect::CleanUp { environment: ENVIRONMENT }).await;

        let Some(Event::CleanedUp { refs: gone, .. }) = told else { panic!("{told:?}") };
        assert_eq!(gone, if closed { refs.clone() } else { [].into() });
    }
    let path = "/v2/app/cache/manifests/app.pr-7";
    assert_eq!(*calls.lock().unwrap(), [format!("HEAD {path}"), format!("DELETE {path}")]);
}
