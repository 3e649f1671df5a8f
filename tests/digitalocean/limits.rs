//! The API is not asked more often than it wants.

use std::time::Duration;

use stagely::core::clock::new_id;
use stagely_provider::{LaunchError, Provider as _};
use stagely_state::ids::MachineId;

use crate::fake::{Cloud, Fault, request};

const TOO_MANY: &str = "API rate limit exceeded.";

#[tokio::test]
async fn the_limit_of_a_minute_is_waited_for() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let request = request(&provider, new_id::<MachineId>());
    cloud.fails("POST droplets", 1, Fault::Status(429, TOO_MANY, &[("retry-after", "2")]));

    let error = provider.launch(&request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Throttled { message: _, .. }), "{error:?}");
    provider.launch(&request).await.unwrap();

    let creations = cloud.seen("POST droplets");
    assert_eq!(creations.iter().map(|it| it.status).collect::<Vec<_>>(), [429, 202]);
    let next = cloud.seen("GET droplets").pop().unwrap();
    assert!(next.at - creations[0].at >= Duration::from_secs(2));
}

#[tokio::test]
async fn while_the_limit_of_an_hour_holds_nothing_is_asked() {
    let cloud = Cloud::start().await;
    let provider = cloud.provider("");
    let machine = new_id::<MachineId>();
    cloud.fails("DELETE droplets", 1, Fault::Status(429, TOO_MANY, &[("retry-after", "1800")]));
    provider.terminate(machine).await.unwrap_err();

    let error = provider.launch(&request(&provider, machine)).await.unwrap_err();
    let LaunchError::Throttled { message: text, .. } = error else { panic!("{error:?}") };
    assert!(text.contains("less often"), "{text}");
    assert!(provider.list().await.unwrap_err().to_string().contains("less often"));
    assert_eq!((cloud.seen("GET droplets").len(), cloud.seen("DELETE droplets").len()), (0, 1));
}
