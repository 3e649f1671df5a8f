//! Why EC2 ended an instance at its launch.
//!
//! Source: Amazon EC2 user guide, "Troubleshoot an Amazon EC2 instance that immediately terminates".

use aws_sdk_ec2::types::Instance;

use super::error::Ec2Error;
use super::instances::is_live;
use crate::LaunchError;

/// The ends that somebody, or the instance itself, has caused.
const CAUSED: [&str; 4] = [
    "Client.InstanceInitiatedShutdown",
    "Client.InstanceTerminated",
    "Client.UserInitiatedHibernate",
    "Client.UserInitiatedShutdown",
];

/// Why the last of a machine's `instances` ended. `None` if one is live, or EC2 does not say why.
pub(super) fn problem(instances: &[Instance]) -> Option<LaunchError> {
    if instances.iter().any(is_live) {
        return None;
    }
    let mut reasons = instances.iter().rev().filter_map(reason);
    let (code, message) = reasons.find(|(code, _)| !CAUSED.contains(&code.as_str()))?;
    let error = Ec2Error::at_launch(&code, &message);
    // `Server.InsufficientInstanceCapacity`, `Server.InternalError`: another launch may succeed.
    let is_permanent = code.starts_with("Client.");
    let problem = if is_permanent { LaunchError::Permanent } else { LaunchError::NoCapacity };
    Some(problem(error.into()))
}

/// The code and the message of the instance's end.
fn reason(instance: &Instance) -> Option<(String, String)> {
    let state = instance.state_reason();
    let code = state.and_then(|reason| reason.code()).filter(|code| !code.is_empty());
    // Some ends have only the older field: `Server.InternalError: Error message`.
    let older = instance.state_transition_reason().unwrap_or_default();
    let code = code.unwrap_or_else(|| older.split(':').next().unwrap_or_default());
    let message = state.and_then(|reason| reason.message()).unwrap_or(older);
    let is_code = ["Client.", "Server."].iter().any(|start| code.starts_with(start));
    is_code.then(|| (code.to_owned(), message.to_owned()))
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState, InstanceStateName, StateReason};

    use super::*;

    fn instance(state: InstanceStateName, code: &str, message: &str) -> Instance {
        Instance::builder()
            .state(InstanceState::builder().name(state).build())
            .state_reason(StateReason::builder().code(code).message(message).build())
            .build()
    }

    fn ended(code: &str, message: &str) -> Option<LaunchError> {
        problem(&[instance(InstanceStateName::Terminated, code, message)])
    }

    #[test]
    fn what_the_account_must_change_is_permanent_and_has_ec2s_words_and_advice() {
        let code = "Client.InternalError";
        let error = ended(code, "Client.InternalError: Client error on launch").unwrap();
        let LaunchError::Permanent(cause) = error else { panic!("{error:?}") };
        let text = cause.to_string();
        assert!(text.starts_with("Client.InternalError: Client error on launch; "), "{text}");
        assert!(text.contains("kms:CreateGrant"), "{text}");
        for (code, advice) in [
            ("Client.VolumeLimitExceeded", "ask AWS"),
            ("Client.InvalidSnapshot.NotFound", "image"),
            ("Client.InvalidKMSKey.InvalidState", "KMS"),
            ("Client.Unknown", "Client.Unknown"),
        ] {
            let error = ended(code, "").unwrap();
            assert!(matches!(error, LaunchError::Permanent(_)), "{error:?}");
            assert!(error.to_string().contains(advice), "{error}");
        }
    }

    #[test]
    fn what_may_pass_is_missing_capacity() {
        for code in ["Server.InsufficientInstanceCapacity", "Server.InternalError"] {
            let error = ended(code, "").unwrap();
            assert!(matches!(error, LaunchError::NoCapacity(_)), "{error:?}");
        }
    }

    #[test]
    fn an_end_that_somebody_caused_and_a_live_instance_are_no_problem() {
        for code in CAUSED.into_iter().chain([""]) {
            assert!(ended(code, "").is_none(), "{code}");
        }
        let gone = instance(InstanceStateName::Terminated, "Client.InternalError", "");
        let live = instance(InstanceStateName::Pending, "", "");
        assert!(problem(&[gone, live]).is_none());
    }

    #[test]
    fn the_older_field_is_read_where_the_newer_is_missing() {
        let gone = Instance::builder()
            .state(InstanceState::builder().name(InstanceStateName::Terminated).build())
            .state_transition_reason("Client.VolumeLimitExceeded: Volume limit exceeded")
            .build();
        let error = problem(&[gone]).unwrap();
        assert!(error.to_string().contains("Volume limit exceeded"), "{error}");
    }
}
