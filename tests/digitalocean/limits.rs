//! The rate limits of the API.

use std::time::Duration;

use stagely::core::clock::new_id;
use stagely_provider::{LaunchError, Provider as _};
use stagely_state::ids::MachineId;

use crate::fake::{Cloud, Fault, request};

const TOO_MANY: &str = "API rate limit exceeded.";

#[tokio::test]
async fn the_next_request_waits_for_the_limit_of_a_minute() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let request = request(new_id::<MachineId>());
    cloud.fails("POST droplets", 1, Fault::Status(429, TOO_MANY, &[("retry-after", "2")]));

    let error = provider.launch(&request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Throttled { .. }), "{error:?}");
    provider.launch(&request).await.unwrap();

    let creations = cloud.seen("POST droplets");
    assert_eq!(creations.iter().map(|request| request.status).collect::<Vec<_>>(), [429, 202]);
    let next = cloud.seen("GET droplets").pop().unwrap();
    assert!(next.at - creations[0].at >= Duration::from_secs(2));
}

#[tokio::test]
async fn no_request_is_sent_during_the_limit_of_an_hour() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let machine = new_id::<MachineId>();
    cloud.fails("DELETE droplets", 1, Fault::Status(429, TOO_MANY, &[("retry-after", "1800")]));
    provider.terminate(machine).await.unwrap_err();

    let error = provider.launch(&request(machine)).await.unwrap_err();
    let LaunchError::Throttled { cause, .. } = error else { panic!("{error:?}") };
    assert!(cause.to_string().contains("rate limit is reached"), "{cause}");
    assert!(provider.list().await.unwrap_err().to_string().contains("rate limit is reached"));
    assert_eq!((cloud.seen("GET droplets").len(), cloud.seen("DELETE droplets").len()), (0, 1));
}
