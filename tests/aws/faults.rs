//! EC2's refusals, and responses that never arrive.

use stagely_protocol::Arch;
use stagely_provider::settings::MarketPolicy;
use stagely_provider::{LaunchError, Provider as _};
use stagely_state::Market;
use stagely_state::comparison::Listed;
use stagely_test_support::wait::eventually;

use crate::launches::{LIVE, amd64, provider, request, spec};
use crate::moto::Cloud;
use crate::proxy::Fate;

const TWO_TYPES: &str = r#"builders.amd64.medium = ["c5.xlarge", "c6i.xlarge"]"#;

#[tokio::test]
async fn each_refusal_for_want_of_capacity_leads_to_the_next_candidate() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, TWO_TYPES);
    let codes = [
        ("InsufficientInstanceCapacity", 500),
        ("SpotMaxPriceTooLow", 400),
        ("MaxSpotInstanceCountExceeded", 400),
        ("VcpuLimitExceeded", 400),
        ("Unsupported", 400),
    ];
    for (code, status) in codes {
        cloud.proxy.next(1, "RunInstances", Fate::Refused(code, status));
        let before = cloud.proxy.seen("RunInstances").len();

        let placement = provider.launch(&amd64()).await.unwrap();

        assert_eq!(placement.instance_type, "c6i.xlarge", "{code}");
        let sent = &cloud.proxy.seen("RunInstances")[before..];
        assert_eq!(sent.len(), 2, "{code}: one request a candidate");
        assert_ne!(sent[0]["ClientToken"], sent[1]["ClientToken"]);
    }
}

#[tokio::test]
async fn no_spot_capacity_leads_to_a_machine_on_demand() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    let spot = ("InstanceMarketOptions.MarketType", "spot");
    let none = Fate::Refused("InsufficientInstanceCapacity", 500);
    cloud.proxy.all_having("RunInstances", spot, none);

    let request = request(spec(Arch::Amd64, MarketPolicy::SpotFirst));
    let placement = provider.launch(&request).await.unwrap();

    assert_eq!(placement.market, Market::OnDemand);
}

#[tokio::test]
async fn when_no_candidate_is_left_the_error_names_all_candidates() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, TWO_TYPES);
    cloud.proxy.next(1, "RunInstances", Fate::Refused("InsufficientInstanceCapacity", 500));
    cloud.proxy.next(1, "RunInstances", Fate::Refused("VcpuLimitExceeded", 400));

    let Err(LaunchError::NoCapacity(cause)) = provider.launch(&amd64()).await else {
        panic!("the machine was launched");
    };
    let message = cause.to_string();
    for part in ["c5.xlarge", "InsufficientInstanceCapacity", "c6i.xlarge", "VcpuLimitExceeded"] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn types_that_no_zone_has_are_not_waited_for() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, TWO_TYPES);
    cloud.proxy.next(2, "RunInstances", Fate::Refused("Unsupported", 400));
    let error = provider.launch(&amd64()).await.unwrap_err();
    assert!(matches!(error, LaunchError::Permanent(_)), "{error:?}");

    cloud.proxy.next(1, "RunInstances", Fate::Refused("Unsupported", 400));
    cloud.proxy.next(1, "RunInstances", Fate::Refused("InsufficientInstanceCapacity", 500));
    let error = provider.launch(&amd64()).await.unwrap_err();
    assert!(matches!(error, LaunchError::NoCapacity(_)), "{error:?}");

    // The first launches on spot alone are followed by one on demand.
    cloud.proxy.next(2, "RunInstances", Fate::Refused("Unsupported", 400));
    let spot = request(spec(Arch::Amd64, MarketPolicy::Spot));
    let error = provider.launch(&spot).await.unwrap_err();
    assert!(matches!(error, LaunchError::NoCapacity(_)), "{error:?}");
}

#[tokio::test]
async fn too_many_requests_and_missing_permissions_stop_at_the_first_candidate() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, TWO_TYPES);
    cloud.proxy.next(1, "RunInstances", Fate::Refused("RequestLimitExceeded", 503));
    let error = provider.launch(&amd64()).await.unwrap_err();
    assert!(matches!(error, LaunchError::Throttled { .. }), "{error:?}");

    cloud.proxy.next(1, "RunInstances", Fate::Refused("UnauthorizedOperation", 403));
    let error = provider.launch(&amd64()).await.unwrap_err();
    assert!(matches!(error, LaunchError::Permanent(_)), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("ec2:RunInstances"), "{message}");
    assert!(message.contains("stagely doctor aws") && !message.contains("AbCdEf"), "{message}");

    assert_eq!(cloud.proxy.seen("RunInstances").len(), 2);
    assert_eq!(cloud.live().await, []);
}

#[tokio::test]
async fn a_launch_is_repeated_after_a_lost_response_and_starts_no_second_instance() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, TWO_TYPES);
    // The first candidate has no capacity, and the response for the second is lost.
    cloud.proxy.next(1, "RunInstances", Fate::Refused("InsufficientInstanceCapacity", 500));
    cloud.proxy.next(1, "RunInstances", Fate::ResponseLost);
    let request = amd64();
    // The list does not show the instance yet.
    cloud.proxy.set_behind(true);

    let error = provider.launch(&request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Unclear(_)), "{error:?}");
    // By now the first candidate would have capacity again.
    let placement = provider.launch(&request).await.unwrap();

    cloud.proxy.set_behind(false);
    let live = cloud.live().await;
    assert_eq!(live.len(), 1, "{live:#?}");
    assert_eq!(live[0].instance_id(), Some(&*placement.provider_id));
    assert_eq!(placement.instance_type, "c6i.xlarge");
}

#[tokio::test]
async fn a_server_error_is_unclear_and_no_other_candidate_is_tried() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, TWO_TYPES);
    cloud.proxy.next(1, "RunInstances", Fate::Refused("InternalError", 500));
    let error = provider.launch(&amd64()).await.unwrap_err();
    assert!(matches!(error, LaunchError::Unclear(_)), "{error:?}");
    assert_eq!(cloud.proxy.seen("RunInstances").len(), 1);
}

#[tokio::test]
async fn after_a_crash_the_launched_machine_is_found() {
    let cloud = Cloud::start().await;
    let first = provider(&cloud, "");
    let request = amd64();
    cloud.proxy.next(1, "RunInstances", Fate::ResponseLost);
    first.launch(&request).await.unwrap_err();

    let second = provider(&cloud, "");
    let placement = second.launch(&request).await.unwrap();

    assert_eq!(cloud.live().await.len(), 1);
    assert_eq!(placement.instance_type, "c5.xlarge");
    assert_eq!(cloud.proxy.seen("RunInstances").len(), 1, "the machine was found by its tags");
}

#[tokio::test]
async fn after_a_crash_a_used_client_token_leads_to_its_machine() {
    let cloud = Cloud::start().await;
    let first = provider(&cloud, "");
    let request = amd64();
    cloud.proxy.next(1, "RunInstances", Fate::ResponseLost);
    first.launch(&request).await.unwrap_err();
    // The next core creates another token for the agent, and EC2 does not show the machine at once.
    let mut again = request.clone();
    again.agent.token = "another-token".into();
    let second = provider(&cloud, "");
    cloud.proxy.set_behind(true);

    let (launched, ()) = tokio::join!(second.launch(&again), async {
        eventually("EC2 is asked to launch", async || {
            (cloud.proxy.seen("RunInstances").len() == 2).then_some(())
        })
        .await;
        cloud.proxy.set_behind(false);
    });

    let live = cloud.live().await;
    assert_eq!(live.len(), 1, "{live:#?}");
    assert_eq!(live[0].instance_id(), Some(&*launched.unwrap().provider_id));
}

#[tokio::test]
async fn a_machine_that_has_ended_is_not_launched_again() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    let mut request = amd64();
    provider.launch(&request).await.unwrap();
    provider.terminate(request.machine).await.unwrap();

    request.agent.token = "another-token".into();
    let error = provider.launch(&request).await.unwrap_err();

    assert!(matches!(error, LaunchError::NoCapacity(_)), "{error:?}");
    assert!(error.to_string().contains("has ended"), "{error}");
    assert_eq!(cloud.live().await, []);
}

#[tokio::test]
async fn a_list_is_requested_again_after_a_rate_limit() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    let request = amd64();
    provider.launch(&request).await.unwrap();
    cloud.proxy.next(2, "DescribeInstances", Fate::Refused("RequestLimitExceeded", 503));
    let listed = provider.list().await.unwrap();
    assert_eq!(listed, [Listed { machine: request.machine, state: LIVE }]);
}

#[tokio::test]
async fn a_list_with_a_failed_page_is_an_error() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, "");
    for _ in 0..3 {
        provider.launch(&amd64()).await.unwrap();
    }
    cloud.proxy.set_page_size(2);
    cloud.proxy.all_but_one("DescribeInstances", Fate::Refused("AuthFailure", 401));
    assert!(provider.list().await.is_err());
    cloud.proxy.behave();
    assert_eq!(provider.list().await.unwrap().len(), 3);
}
