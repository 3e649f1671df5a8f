//! What EC2's errors mean, by their code.
//!
//! Source: Amazon EC2 API reference, "Error codes for the Amazon EC2 API".

use std::error::Error;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

use crate::{LaunchError, ProviderError};

/// A request that did not succeed.
#[derive(Debug)]
pub(super) struct Fault {
    /// What EC2 calls it, if it answered.
    code: Option<String>,
    message: String,
    pub(super) kind: Kind,
}

/// What follows from a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is none of it at the moment, or no more for this account. Nothing was started.
    Capacity,
    /// Requests come too fast, or credentials cannot be had at the moment. Nothing was started.
    Throttled,
    /// The client token has been used, for another request.
    TokenUsed,
    /// What it was asked about does not exist.
    NotFound,
    /// Somebody has to change something.
    Permanent,
    /// Nobody knows whether it was done.
    Unclear,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{code}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl<E: ProvideErrorMetadata + Error + 'static> From<SdkError<E>> for Fault {
    fn from(error: SdkError<E>) -> Self {
        if let SdkError::ServiceError(answer) = &error {
            let status = answer.raw().status().as_u16();
            let metadata = answer.err().meta();
            if let Some(code) = metadata.code() {
                return Self::new(code, metadata.message().unwrap_or_default(), status);
            }
            let message = format!("EC2 answers with status {status}");
            let kind = kind_of("", status);
            return Self { code: None, message, kind };
        }
        let kind = match credentials_error(&error) {
            Some(
                CredentialsError::CredentialsNotLoaded(_)
                | CredentialsError::InvalidConfiguration(_),
            ) => Kind::Permanent,
            // Whoever gives them does not answer. Without them nothing is sent.
            Some(_) => Kind::Throttled,
            None if matches!(error, SdkError::ConstructionFailure(_)) => Kind::Permanent,
            None => Kind::Unclear,
        };
        let fix = match kind {
            Kind::Permanent | Kind::Throttled => "; `stagely doctor aws` checks the credentials",
            _ => "",
        };
        Self { code: None, message: format!("cannot ask EC2: {}{fix}", chain(&error)), kind }
    }
}

impl Fault {
    fn new(code: &str, message: &str, status: u16) -> Self {
        let kind = kind_of(code, status);
        // What follows is for AWS's own tools, and long.
        let message = message.split(" Encoded authorization failure").next().unwrap_or_default();
        let mut message = message.trim_end_matches(['.', ' ']).to_owned();
        if let Some(fix) = fix_of(code) {
            message = format!("{message}; {fix}");
        }
        Self { code: Some(code.to_owned()), message, kind }
    }

    pub(super) fn unclear(message: &str) -> Self {
        Self { code: None, message: message.to_owned(), kind: Kind::Unclear }
    }

    /// Whether EC2 said so itself.
    pub(super) const fn is_answer(&self) -> bool {
        self.code.is_some()
    }

    /// What AWS said, without the code.
    pub(super) fn words(&self) -> &str {
        &self.message
    }

    /// Whether it says that an image is not there.
    pub(super) fn is_of_image(&self) -> bool {
        self.code().is_some_and(|code| code.starts_with("InvalidAMIID"))
    }

    pub(super) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// For a launch that came to nothing with it.
    pub(super) fn into_launch_error(self) -> LaunchError {
        let message = self.to_string();
        match self.kind {
            Kind::Capacity => LaunchError::NoCapacity(message),
            Kind::Throttled => LaunchError::Throttled { message, wait: None },
            Kind::NotFound | Kind::Permanent => LaunchError::Permanent(message),
            Kind::TokenUsed | Kind::Unclear => LaunchError::Unclear(message),
        }
    }
}

impl From<Fault> for ProviderError {
    fn from(fault: Fault) -> Self {
        Self(fault.to_string())
    }
}

fn kind_of(code: &str, status: u16) -> Kind {
    match code {
        // `InsufficientInstanceCapacity` has status 500, so codes come first.
        "InsufficientInstanceCapacity"
        | "InsufficientCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientCapacityOnHost"
        | "InsufficientReservedInstanceCapacity"
        | "ReservationCapacityExceeded"
        | "InsufficientVolumeCapacity"
        | "InsufficientFreeAddressesInSubnet"
        | "InsufficientAddressCapacity"
        | "UnfulfillableCapacity"
        | "SpotMaxPriceTooLow"
        | "MaxSpotInstanceCountExceeded"
        | "VcpuLimitExceeded"
        | "InstanceLimitExceeded"
        | "VolumeLimitExceeded"
        | "ResourceCountExceeded"
        // The zone has no machines, or no volumes, of this type.
        | "VolumeTypeNotAvailableInZone"
        | "Unsupported" => Kind::Capacity,
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "EC2ThrottledException"
        | "TooManyRequestsException"
        | "BandwidthLimitExceeded"
        | "SlowDown"
        | "ConcurrentTagAccess" => Kind::Throttled,
        "IdempotentParameterMismatch" | "IdempotentInstanceTerminated" => Kind::TokenUsed,
        code if code.ends_with(".NotFound") => Kind::NotFound,
        "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable"
        | "RequestTimeout" => Kind::Unclear,
        _ if status == 429 => Kind::Throttled,
        _ if status >= 500 => Kind::Unclear,
        _ => Kind::Permanent,
    }
}

/// What its owner can do about an error, where EC2's words do not say.
fn fix_of(code: &str) -> Option<&'static str> {
    Some(match code {
        "UnauthorizedOperation" | "AccessDenied" => {
            "`stagely doctor aws` names what is missing and prints a policy"
        }
        "AuthFailure"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken" => {
            "AWS does not take these credentials, or this machine's clock is wrong"
        }
        "RequestExpired" | "ExpiredToken" => {
            "renew the credentials (`aws sso login`), and check this machine's clock"
        }
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted" => {
            "once for the account: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
        }
        "OptInRequired" => "the account has not accepted the terms of EC2 or of this image",
        "PendingVerification" => "AWS still verifies this new account",
        "InvalidAMIID.NotFound" | "InvalidAMIID.Malformed" | "InvalidAMIID.Unavailable" => {
            "check image-amd64 and image-arm64 in [aws]; images belong to one region"
        }
        "InvalidSubnetID.NotFound" | "InvalidSubnet" => "check `subnets` in [aws]",
        "InvalidGroup.NotFound"
        | "InvalidGroupId.Malformed"
        | "InvalidSecurityGroupID.NotFound" => {
            "check `security-groups` in [aws]; they belong to one VPC"
        }
        "InvalidZone.NotFound" => "check `zones` in [aws]",
        "InvalidIamInstanceProfileArnNotFound"
        | "InvalidIamInstanceProfile"
        | "InvalidIamInstanceProfileName.NotFound" => "check `instance-profile` in [aws]",
        "VPCIdNotSpecified" | "DefaultVpcDoesNotExist" => {
            "the account has no default VPC: name `subnets` in [aws]"
        }
        "InvalidBlockDeviceMapping" => {
            "check `volume-gib` in [aws]: a volume cannot be smaller than its image"
        }
        _ => return None,
    })
}

fn credentials_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// An error's own words and those of all its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if words.last() != Some(&text) {
            words.push(text);
        }
        cause = error.source();
    }
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_capacity_is_no_server_error_and_a_server_error_is_unclear() {
        assert_eq!(Fault::new("InsufficientInstanceCapacity", "", 500).kind, Kind::Capacity);
        assert_eq!(Fault::new("InternalError", "", 500).kind, Kind::Unclear);
        assert_eq!(Fault::new("Unheard", "", 503).kind, Kind::Unclear);
        assert_eq!(Fault::new("Unheard", "", 400).kind, Kind::Permanent);
        assert_eq!(Fault::new("InvalidInstanceID.NotFound", "", 400).kind, Kind::NotFound);
    }

    #[test]
    fn a_missing_permission_is_named_without_what_only_aws_can_read() {
        let said = "You are not authorized to perform this operation. User: arn:aws:iam::1:user/a is not \
                    authorized to perform: ec2:RunInstances. Encoded authorization failure message: AbCdEf";
        let fault = Fault::new("UnauthorizedOperation", said, 403).to_string();
        assert!(fault.contains("ec2:RunInstances; `stagely doctor aws`"), "{fault}");
        assert!(!fault.contains("AbCdEf"), "{fault}");
    }
}
