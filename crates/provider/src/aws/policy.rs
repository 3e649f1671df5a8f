//! The IAM policy with the least permissions that Stagely needs.

use serde_json::{Value, json};

use super::{CORE_TAG, MACHINE_TAG};

/// A policy for `region`. It allows to launch instances with core's tag, and to end and tag no others. With
/// `instance_profile`, a name or an ARN, it allows to pass the role of the same name to machines. AWS's console gives
/// a profile and its role the same name.
pub fn policy(region: &str, instance_profile: Option<&str>) -> Value {
    let arns = Arns::of(region);
    let mut statements = vec![describe()];
    statements.extend(launch(&arns));
    statements.push(terminate(&arns));
    statements.extend(instance_profile.map(|profile| pass_role(&arns, profile)));
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// The resource names of a region.
struct Arns<'a> {
    partition: &'static str,
    region: &'a str,
}

impl<'a> Arns<'a> {
    fn of(region: &'a str) -> Self {
        let partition = match region {
            _ if region.starts_with("cn-") => "aws-cn",
            _ if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        };
        Self { partition, region }
    }

    /// The account's own resources of this kind.
    fn own(&self, kind: &str) -> String {
        format!("arn:{}:ec2:{}:*:{kind}/*", self.partition, self.region)
    }

    /// Resources of this kind that may belong to other accounts.
    fn shared(&self, kind: &str) -> String {
        format!("arn:{}:ec2:{}::{kind}/*", self.partition, self.region)
    }

    fn role(&self, role: &str) -> String {
        format!("arn:{}:iam::*:role/{role}", self.partition)
    }
}

fn describe() -> Value {
    json!({
        "Sid": "Describe",
        "Effect": "Allow",
        "Action": [
            "ec2:DescribeImages",
            "ec2:DescribeInstances",
            "ec2:DescribeInstanceTypes",
            "ec2:DescribeSecurityGroups",
            "ec2:DescribeSpotPriceHistory",
            "ec2:DescribeSubnets"
        ],
        // These actions have no resources.
        "Resource": "*"
    })
}

/// Launching with core's tag, from any image and in any subnet.
fn launch(arns: &Arns<'_>) -> [Value; 3] {
    [
        json!({
            "Sid": "LaunchWithOurTag",
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": [arns.own("instance"), arns.own("volume")],
            "Condition": { "Null": { format!("aws:RequestTag/{CORE_TAG}"): "false" } }
        }),
        json!({
            "Sid": "LaunchWhatItIsMadeOf",
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": [
                arns.shared("image"),
                arns.shared("snapshot"),
                arns.own("subnet"),
                arns.own("network-interface"),
                arns.own("security-group"),
                arns.own("spot-instances-request")
            ]
        }),
        json!({
            "Sid": "TagAtLaunch",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": [arns.own("instance"), arns.own("volume")],
            "Condition": { "StringEquals": { "ec2:CreateAction": "RunInstances" } }
        }),
    ]
}

fn terminate(arns: &Arns<'_>) -> Value {
    json!({
        "Sid": "EndOurs",
        "Effect": "Allow",
        "Action": "ec2:TerminateInstances",
        "Resource": arns.own("instance"),
        "Condition": {
            "Null": {
                format!("aws:ResourceTag/{CORE_TAG}"): "false",
                format!("aws:ResourceTag/{MACHINE_TAG}"): "false"
            }
        }
    })
}

fn pass_role(arns: &Arns<'_>, profile: &str) -> Value {
    let role = profile.rsplit('/').next().unwrap_or(profile);
    json!({
        "Sid": "HandOverTheInstanceProfile",
        "Effect": "Allow",
        "Action": "iam:PassRole",
        "Resource": arns.role(role),
        "Condition": { "StringEquals": { "iam:PassedToService": "ec2.amazonaws.com" } }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tagged_instances_are_ended_and_no_role_is_passed_without_a_profile() {
        let text = policy("cn-north-1", None).to_string();
        assert!(text.contains("arn:aws-cn:ec2:cn-north-1:*:instance/*"), "{text}");
        assert!(!text.contains("iam:PassRole"), "{text}");
        let profile = "arn:aws:iam::1:instance-profile/stagely-machine";
        let policy = policy("eu-west-1", Some(profile));
        let statements = policy["Statement"].as_array().unwrap();
        let ends =
            statements.iter().filter(|statement| statement["Action"] == "ec2:TerminateInstances");
        for end in ends {
            assert_eq!(end["Condition"]["Null"]["aws:ResourceTag/stagely:core"], "false");
        }
        let pass = statements.iter().find(|statement| statement["Action"] == "iam:PassRole");
        assert_eq!(pass.unwrap()["Resource"], "arn:aws:iam::*:role/stagely-machine");
    }
}
