//! The JSON of pull requests, comments and so on: GitHub's own examples with the values of this fake.

use serde_json::{Value, json};

use super::description::{self, Description};
use super::world::{
    Comment, Delivery, Deployment, DeploymentStatus, Pull, Repo, Status, Token, World, written,
};

/// An example of the API's description, with the URLs of this fake and this repository.
fn example(world: &World, name: &str, repo: &Repo) -> Value {
    with_addresses(world, &Description::get().example(name), "octocat/Hello-World", repo)
}

fn with_addresses(world: &World, example: &Value, theirs: &str, repo: &Repo) -> Value {
    let text = example.to_string();
    let text = text
        .replace("https://api.github.com", &world.api())
        .replace("https://github.com", &world.site)
        .replace(theirs, &repo.full_name);
    serde_json::from_str(&text).unwrap()
}

/// Merges `over` into `value`: objects are merged, other values are replaced.
fn lay(value: &mut Value, over: Value) {
    match (value, over) {
        (Value::Object(value), Value::Object(over)) => {
            for (key, over) in over {
                lay(value.entry(key).or_insert(Value::Null), over);
            }
        }
        (value, over) => *value = over,
    }
}

fn laid(mut value: Value, over: Value) -> Value {
    lay(&mut value, over);
    value
}

/// The fields of a repository, in answers and in deliveries.
fn repository_fields(world: &World, repo: &Repo) -> Value {
    json!({
        "id": repo.id, "name": repo.name(), "full_name": repo.full_name, "private": repo.is_private,
        "owner": { "login": repo.owner() }, "default_branch": "main", "fork": false,
        "html_url": format!("{}/{}", world.site, repo.full_name),
        "clone_url": format!("{}/{}.git", world.site, repo.full_name),
    })
}

pub(crate) fn repository(world: &World, repo: &Repo) -> Value {
    let example = example(world, "full-repository-default-response", repo);
    let mut value = laid(example, repository_fields(world, repo));
    // The example of a fork has too many fields, and the description needs one more.
    for field in ["source", "parent", "template_repository"] {
        value.as_object_mut().unwrap().remove(field);
    }
    value["language"] = Value::Null;
    value
}

/// The fields of a pull request, in answers and in deliveries.
fn pull_fields(world: &World, repo: &Repo, pull: &Pull, head_repository: &Value) -> Value {
    let is_fork = pull.head_repository != repo.full_name;
    let (head_owner, head_name) = pull.head_repository.split_once('/').unwrap();
    let head_fields = json!({
        "id": if is_fork { repo.id + 1_000_000 } else { repo.id }, "name": head_name, "fork": is_fork,
        "full_name": pull.head_repository, "owner": { "login": head_owner }, "private": repo.is_private,
        "html_url": format!("{}/{}", world.site, pull.head_repository),
        "clone_url": format!("{}/{}.git", world.site, pull.head_repository),
    });
    let labels: Vec<Value> = pull.labels.iter().map(|name| label(name)).collect();
    json!({
        "number": pull.number, "id": repo.id * 1_000 + pull.number, "draft": pull.is_draft,
        "state": if pull.is_open { "open" } else { "closed" }, "labels": labels,
        "title": format!("Change {}", pull.branch), "user": { "login": pull.author },
        "requested_teams": [], "author_association": pull.association,
        "created_at": written(pull.created_at), "updated_at": written(pull.updated_at),
        "closed_at": pull.closed_at.map(written),
        "merged_at": pull.closed_at.filter(|_| pull.is_merged).map(written),
        "html_url": format!("{}/{}/pull/{}", world.site, repo.full_name, pull.number),
        "head": {
            "label": format!("{head_owner}:{}", pull.branch), "ref": pull.branch, "sha": pull.head,
            "user": { "login": head_owner }, "repo": laid(head_repository.clone(), head_fields),
        },
        "base": {
            "label": format!("{}:main", repo.owner()), "ref": "main", "sha": pull.base,
            "user": { "login": repo.owner() },
            "repo": laid(head_repository.clone(), repository_fields(world, repo)),
        },
    })
}

fn label(name: &str) -> Value {
    json!({
        "id": 208_045_946, "node_id": "MDU6TGFiZWwyMDgwNDU5NDY=", "name": name, "color": "f29513",
        "url": "https://api.github.com/labels/it", "description": null, "default": false,
    })
}

/// The answer to `GET /repos/{owner}/{repo}/pulls/{pull_number}`.
pub(crate) fn pull(world: &World, repo: &Repo, pull: &Pull) -> Value {
    let example = example(world, "pull-request", repo);
    let fields = pull_fields(world, repo, pull, &example["head"]["repo"]);
    laid(laid(example, fields), json!({ "merged": pull.is_merged }))
}

pub(crate) fn pull_in_list(world: &World, repo: &Repo, pull: &Pull) -> Value {
    let example = example(world, "pull-request-simple-items", repo)[0].clone();
    let fields = pull_fields(world, repo, pull, &example["head"]["repo"]);
    laid(example, fields)
}

pub(crate) fn comment(world: &World, repo: &Repo, comment: &Comment) -> Value {
    let at = format!("{}/repos/{}/issues", world.api(), repo.full_name);
    let fields = json!({
        "id": comment.id, "body": comment.body, "user": { "login": comment.author },
        "created_at": written(comment.created_at), "updated_at": written(comment.updated_at),
        "url": format!("{at}/comments/{}", comment.id), "issue_url": format!("{at}/{}", comment.number),
    });
    laid(example(world, "issue-comment", repo), fields)
}

pub(crate) fn status(world: &World, repo: &Repo, status: &Status) -> Value {
    let fields = json!({
        "id": status.id, "state": status.state, "context": status.context,
        "description": status.description, "target_url": status.target_url,
        "created_at": written(status.at), "updated_at": written(status.at),
    });
    laid(example(world, "status", repo), fields)
}

pub(crate) fn deployment(world: &World, repo: &Repo, deployment: &Deployment) -> Value {
    let fields = json!({
        "id": deployment.id, "sha": deployment.commit, "ref": deployment.commit,
        "environment": deployment.environment, "original_environment": deployment.environment,
        "transient_environment": deployment.is_transient, "production_environment": false,
        "created_at": written(deployment.at), "updated_at": written(deployment.at),
        "url": deployment_url(world, repo, deployment),
    });
    let mut value = laid(example(world, "deployment", repo), fields);
    // Not merged with the example's payload.
    value["payload"] = deployment.payload.clone();
    value
}

pub(crate) fn deployment_status(
    world: &World,
    repo: &Repo,
    deployment: &Deployment,
    status: &DeploymentStatus,
) -> Value {
    let fields = json!({
        "id": status.id, "state": status.state, "description": status.description,
        "log_url": status.log_url, "target_url": status.log_url,
        "environment": deployment.environment,
        "deployment_url": deployment_url(world, repo, deployment),
        "created_at": written(status.at), "updated_at": written(status.at),
    });
    let mut value = laid(example(world, "deployment-status", repo), fields);
    if status.environment_url.is_empty() {
        value.as_object_mut().unwrap().remove("environment_url");
    } else {
        value["environment_url"] = json!(status.environment_url);
    }
    value
}

fn deployment_url(world: &World, repo: &Repo, deployment: &Deployment) -> String {
    format!("{}/repos/{}/deployments/{}", world.api(), repo.full_name, deployment.id)
}

pub(crate) fn installation(world: &World, repo: &Repo) -> Value {
    let (app, id) = (world.app.id, world.app.installation);
    let fields = json!({
        "id": id, "app_id": app, "permissions": world.app.permissions,
        "access_tokens_url": format!("{}/app/installations/{id}/access_tokens", world.api()),
    });
    laid(example(world, "installation", repo), fields)
}

pub(crate) fn token(world: &World, text: &str, token: &Token) -> Value {
    let repo = world.repository(&token.repositories[0]).expect("it was minted for it");
    let mut example = example(world, "installation-token", repo);
    let of = |name: &String| {
        let repo = world.repository(name).unwrap();
        laid(example["repositories"][0].clone(), repository_fields(world, repo))
    };
    let repositories: Vec<Value> = token.repositories.iter().map(of).collect();
    example["permissions"] = json!(token.permissions);
    example["repositories"] = json!(repositories);
    laid(example, json!({ "token": text, "expires_at": written(token.expires_at) }))
}

pub(crate) fn permission(account: &str, level: &str) -> Value {
    let name = "repository-collaborator-permission-response-if-user-has-admin-permissions";
    let fields = json!({ "permission": level, "role_name": level, "user": { "login": account, "role_name": level } });
    laid(Description::get().example(name), fields)
}

pub(crate) fn file(world: &World, repo: &Repo, path: &str, content: &[u8]) -> Value {
    use base64::Engine as _;
    let encoded = base64::prelude::BASE64_STANDARD.encode(content);
    let fields = json!({
        "type": "file", "encoding": "base64", "size": content.len(), "path": path,
        "name": path.rsplit('/').next(), "content": encoded,
    });
    laid(example(world, "content-file-response-if-content-is-a-file", repo), fields)
}

/// A delivery in the answer to `GET /app/hook/deliveries`.
pub(crate) fn delivery_in_list(world: &World, delivery: &Delivery) -> Value {
    let is_ok = (200..400).contains(&delivery.status);
    let fields = json!({
        "id": delivery.id, "guid": delivery.guid, "delivered_at": written(delivery.at),
        "redelivery": delivery.is_redelivery, "status_code": delivery.status, "event": delivery.event,
        "status": if is_ok { "OK" } else { "failed to connect to host" }, "action": delivery.payload["action"],
        "installation_id": world.app.installation, "repository_id": delivery.payload["repository"]["id"],
        "throttled_at": null,
    });
    laid(Description::get().example("hook-delivery-items")[0].clone(), fields)
}

/// The answer to `GET /app/hook/deliveries/{delivery_id}`.
pub(crate) fn delivery(world: &World, delivery: &Delivery) -> Value {
    let mut value = Description::get().example("hook-delivery");
    lay(&mut value, delivery_in_list(world, delivery));
    let headers = json!({ "X-GitHub-Delivery": delivery.guid, "X-GitHub-Event": delivery.event });
    lay(&mut value["request"]["headers"], headers);
    // Not merged with the example's payload, which is of another kind.
    value["request"]["payload"] = delivery.payload.clone();
    value
}

/// The payload of a delivery: a real one with the values of this fake.
pub(crate) fn payload(
    world: &World,
    repo: &Repo,
    (event, action): (&str, Option<&str>),
    sender: &str,
) -> Value {
    let example = match action {
        Some(action) => description::delivery(event, action),
        None => description::deliveries(event).last().unwrap().clone(),
    };
    let mut value = with_addresses(world, &example, "Codertocat/Hello-World", repo);
    lay(
        &mut value,
        json!({
            "repository": repository_fields(world, repo), "sender": { "login": sender },
            "installation": { "id": world.app.installation, "node_id": "MDIzOkludGVncmF0aW9uSW5z" },
        }),
    );
    value
}

/// The payload of `pull_request`.
pub(crate) fn pull_payload(
    world: &World,
    repo: &Repo,
    action: &str,
    pull: &Pull,
    sender: &str,
) -> Value {
    let mut value = payload(world, repo, ("pull_request", Some(action)), sender);
    let head_repository = value["pull_request"]["base"]["repo"].clone();
    let fields = pull_fields(world, repo, pull, &head_repository);
    lay(&mut value["pull_request"], fields);
    value["pull_request"]["merged"] = json!(pull.is_merged);
    value["number"] = json!(pull.number);
    value
}

/// The payload of `issue_comment`.
pub(crate) fn comment_payload(world: &World, repo: &Repo, pull: &Pull, written: &Comment) -> Value {
    let mut value = payload(world, repo, ("issue_comment", Some("created")), &written.author);
    let fields = comment(world, repo, written);
    for field in ["id", "body", "created_at", "updated_at", "url", "issue_url"] {
        value["comment"][field] = fields[field].clone();
    }
    value["comment"]["user"]["login"] = json!(written.author);
    let at = format!("{}/repos/{}/pulls/{}", world.api(), repo.full_name, pull.number);
    let page = format!("{}/{}/pull/{}", world.site, repo.full_name, pull.number);
    lay(
        &mut value["issue"],
        json!({
            "number": pull.number, "state": if pull.is_open { "open" } else { "closed" },
            "user": { "login": pull.author }, "title": format!("Change {}", pull.branch),
            "pull_request": {
                "url": at, "html_url": page, "diff_url": format!("{page}.diff"),
                "patch_url": format!("{page}.patch"),
            },
        }),
    );
    value
}
