//! GitHub's REST API: an arm for each operation that core uses.

use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::shapes;
use super::world::{
    Comment, DEPLOYMENT_STATUSES_MAX, Deployment, DeploymentStatus, Permissions, Pull, Repo,
    Status, Token, World, now,
};

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: &Value) -> Self {
        let json = ("content-type", "application/json; charset=utf-8".to_owned());
        Self { status, headers: vec![json], body: body.to_string().into_bytes() }
    }

    pub(crate) fn error(status: u16, message: &str) -> Self {
        let page = "https://docs.github.com/rest";
        let body =
            json!({ "message": message, "documentation_url": page, "status": status.to_string() });
        Self::new(status, &body)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn not_found() -> Self {
        Self::error(404, "Not Found")
    }
}

/// A request with its operation in the description.
pub(crate) struct Call<'a> {
    /// `GET /repos/{owner}/{repo}`.
    pub(crate) operation: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a [(String, String)],
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a Value,
}

impl Call<'_> {
    fn parts(&self) -> Vec<&str> {
        self.path.trim_start_matches('/').split('/').collect()
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `owner/name`, for the operations of a repository.
    fn repository(&self) -> Option<String> {
        let parts = self.parts();
        (parts[0] == "repos").then(|| format!("{}/{}", parts[1], parts[2]))
    }

    fn credentials(&self) -> Option<&str> {
        let value = self.headers.get("authorization")?.to_str().ok()?;
        value.split_once(' ').map(|(_, token)| token)
    }

    fn number(&self, index: usize) -> u64 {
        self.parts()[index].parse().unwrap_or_default()
    }
}

/// The permissions of which an operation needs one.
fn needs(operation: &str) -> &'static [(&'static str, &'static str)] {
    match operation {
        "GET /repos/{owner}/{repo}/contents/{path}" => &[("contents", "read")],
        "GET /repos/{owner}/{repo}/pulls" | "GET /repos/{owner}/{repo}/pulls/{pull_number}" => {
            &[("pull_requests", "read")]
        }
        "GET /repos/{owner}/{repo}/issues/{issue_number}/comments"
        | "GET /repos/{owner}/{repo}/issues/comments/{comment_id}" => {
            &[("issues", "read"), ("pull_requests", "read")]
        }
        "POST /repos/{owner}/{repo}/issues/{issue_number}/comments"
        | "PATCH /repos/{owner}/{repo}/issues/comments/{comment_id}" => {
            &[("issues", "write"), ("pull_requests", "write")]
        }
        "POST /repos/{owner}/{repo}/statuses/{sha}" => &[("statuses", "write")],
        "GET /repos/{owner}/{repo}/deployments" => &[("deployments", "read")],
        "POST /repos/{owner}/{repo}/deployments"
        | "POST /repos/{owner}/{repo}/deployments/{deployment_id}/statuses" => {
            &[("deployments", "write")]
        }
        "GET /repos/{owner}/{repo}/commits/{ref}/statuses" => &[("statuses", "read")],
        _ => &[("metadata", "read")],
    }
}

fn allows(held: &Permissions, (name, level): (&str, &str)) -> bool {
    // Every token may read a repository's description.
    name == "metadata"
        || held.get(name).is_some_and(|granted| granted == level || granted == "write")
}

impl World {
    /// Answers a request if its credentials allow it.
    pub(crate) fn answer(&mut self, call: &Call) -> Answer {
        let is_app = call.operation.contains(" /app")
            || call.operation == "GET /repos/{owner}/{repo}/installation";
        match self.check_credentials(call, is_app) {
            Ok(account) => self.act(call, &account),
            Err(answer) => answer,
        }
    }

    /// The account of the request.
    fn check_credentials(&mut self, call: &Call, is_app: bool) -> Result<String, Answer> {
        let Some(text) = call.credentials() else {
            return Err(Answer::error(401, "Requires authentication"));
        };
        if is_app {
            return self.app.check(text).map(|()| "the app".to_owned()).map_err(|problem| {
                self.complaints.push(format!("{}: the app's token: {problem}", call.path));
                Answer::error(401, "A JSON web token could not be decoded")
            });
        }
        let token = self.tokens.get(text).filter(|token| token.expires_at > now());
        let token = token.ok_or_else(|| Answer::error(401, "Bad credentials"))?;
        let Some(repository) = call.repository() else { return Ok(token.account.clone()) };
        if !token.repositories.iter().any(|allowed| allowed.eq_ignore_ascii_case(&repository)) {
            return Err(Answer::not_found());
        }
        if !needs(call.operation).iter().any(|need| allows(&token.permissions, *need)) {
            return Err(Answer::error(403, "Resource not accessible by integration"));
        }
        Ok(token.account.clone())
    }

    fn act(&mut self, call: &Call, account: &str) -> Answer {
        match call.operation {
            "GET /repos/{owner}/{repo}" => self
                .with_repo(call, |world, repo| Answer::new(200, &shapes::repository(world, repo))),
            "GET /repos/{owner}/{repo}/installation" => self.with_repo(call, |world, repo| {
                if !repo.has_app {
                    return Answer::not_found();
                }
                Answer::new(200, &shapes::installation(world, repo))
            }),
            "POST /app/installations/{installation_id}/access_tokens" => self.mint(call),
            "GET /app/hook/deliveries" => self.list_deliveries(call),
            "GET /app/hook/deliveries/{delivery_id}" => {
                let id = call.number(3);
                let found = self.deliveries.iter().find(|delivery| delivery.id == id);
                found.map_or_else(Answer::not_found, |delivery| {
                    Answer::new(200, &shapes::delivery(self, delivery))
                })
            }
            "GET /repos/{owner}/{repo}/contents/{path}" => self.read_file(call),
            "GET /repos/{owner}/{repo}/pulls" => self.list_pulls(call),
            "GET /repos/{owner}/{repo}/pulls/{pull_number}" => {
                self.with_repo(call, |world, repo| {
                    let pull = repo.pulls.get(&call.number(4));
                    pull.map_or_else(Answer::not_found, |pull| {
                        Answer::new(200, &shapes::pull(world, repo, pull))
                    })
                })
            }
            "GET /repos/{owner}/{repo}/collaborators/{username}/permission" => {
                self.with_repo(call, |_, repo| {
                    let account = call.parts()[4];
                    // Everybody may read a public repository.
                    let anybody = if repo.is_private { "none" } else { "read" };
                    let level = repo.people.get(account).map_or(anybody, String::as_str);
                    Answer::new(200, &shapes::permission(account, level))
                })
            }
            "GET /repos/{owner}/{repo}/issues/{issue_number}/comments" => self.list_comments(call),
            "POST /repos/{owner}/{repo}/issues/{issue_number}/comments" => {
                self.create_comment(call, account)
            }
            "GET /repos/{owner}/{repo}/issues/comments/{comment_id}" => {
                let found = self.comments.iter().find(|comment| comment.id == call.number(5));
                let found = found.cloned();
                self.show_comment(found)
            }
            "PATCH /repos/{owner}/{repo}/issues/comments/{comment_id}" => self.edit_comment(call),
            "POST /repos/{owner}/{repo}/statuses/{sha}" => self.set_status(call),
            "GET /repos/{owner}/{repo}/deployments" => self.list_deployments(call),
            "POST /repos/{owner}/{repo}/deployments" => self.create_deployment(call),
            "POST /repos/{owner}/{repo}/deployments/{deployment_id}/statuses" => {
                self.set_deployment_status(call)
            }
            "GET /rate_limit" => {
                let (limit, left) = (super::world::REQUESTS_PER_HOUR, self.limit.remaining);
                let reset = self.limit.resets_at.as_second();
                let part = json!({ "limit": limit, "remaining": left, "reset": reset, "used": limit - left });
                let resources = json!({ "core": part, "search": part });
                Answer::new(200, &json!({ "resources": resources, "rate": part }))
            }
            other => {
                self.complaints.push(format!("this fake cannot {other}: teach it"));
                Answer::error(501, "this fake cannot do that")
            }
        }
    }

    fn with_repo(&self, call: &Call, act: impl FnOnce(&Self, &Repo) -> Answer) -> Answer {
        let name = call.repository().expect("an operation of a repository");
        self.repository(&name).map_or_else(Answer::not_found, |repo| act(self, repo))
    }

    /// Creates the requested token, which must not allow more than the app may do.
    fn mint(&mut self, call: &Call) -> Answer {
        if call.number(2) != self.app.installation {
            return Answer::not_found();
        }
        let installed = || self.repositories.values().filter(|repo| repo.has_app);
        let repositories: Vec<String> = match call.body["repositories"].as_array() {
            Some(names) => {
                let find = |name: &Value| installed().find(|repo| *name == repo.name());
                let found: Option<Vec<_>> = names.iter().map(find).collect();
                let Some(found) = found else {
                    return Answer::error(
                        422,
                        "There is at least one repository that does not exist \
                        or is not accessible to the parent installation.",
                    );
                };
                found.iter().map(|repo| repo.full_name.clone()).collect()
            }
            None => match call.body["repository_ids"].as_array() {
                Some(ids) => installed()
                    .filter(|repo| ids.iter().any(|id| *id == repo.id))
                    .map(|repo| repo.full_name.clone())
                    .collect(),
                None => installed().map(|repo| repo.full_name.clone()).collect(),
            },
        };
        let asked: Option<Permissions> =
            serde_json::from_value(call.body["permissions"].clone()).unwrap();
        let permissions = asked.unwrap_or_else(|| self.app.permissions.clone());
        let is_granted = |(name, level): (&String, &String)| {
            self.app.permissions.contains_key(name) && allows(&self.app.permissions, (name, level))
        };
        if repositories.is_empty() || !permissions.iter().all(is_granted) {
            let message = "The permissions requested are not granted to this installation.";
            return Answer::error(422, message);
        }
        let text = format!("ghs_{:036x}", rand::random::<u128>());
        let expires_at = now() + Duration::from_hours(1);
        let account = "stagely[bot]".to_owned();
        let token = Token { account, repositories, permissions, expires_at };
        let answer = Answer::new(201, &shapes::token(self, &text, &token));
        self.tokens.insert(text, token);
        answer
    }

    fn list_deliveries(&self, call: &Call) -> Answer {
        let page: usize = call.query("per_page").map_or(30, |text| text.parse().unwrap());
        let is_wanted = |status: u16| match call.query("status") {
            Some("success") => (200..400).contains(&status),
            Some("failure") => status >= 400,
            _ => true,
        };
        let cursor: u64 = call.query("cursor").map_or(u64::MAX, |text| text.parse().unwrap());
        let before = |id: u64| id < cursor;
        let newest = self.deliveries.iter().rev().filter(|delivery| is_wanted(delivery.status));
        let mut rest = newest.filter(|delivery| before(delivery.id)).peekable();
        let shown: Vec<_> = rest.by_ref().take(page).collect();
        let shapes: Vec<Value> =
            shown.iter().map(|delivery| shapes::delivery_in_list(self, delivery)).collect();
        let answer = Answer::new(200, &json!(shapes));
        let Some(oldest) = shown.last().filter(|_| rest.peek().is_some()) else { return answer };
        let status =
            call.query("status").map(|status| format!("&status={status}")).unwrap_or_default();
        let (api, cursor) = (self.api(), oldest.id);
        let link = format!(
            "<{api}/app/hook/deliveries?per_page={page}&cursor={cursor}{status}>; rel=\"next\""
        );
        answer.with("link", link)
    }

    fn read_file(&self, call: &Call) -> Answer {
        self.with_repo(call, |world, repo| {
            let path = call.parts()[4..].join("/");
            let path = percent_decoded(&path);
            let at = call.query("ref").unwrap_or("main");
            let Some(content) = repo.file(at, &path) else { return Answer::not_found() };
            let accept = call.headers.get("accept").and_then(|value| value.to_str().ok());
            if accept.is_some_and(|accept| accept.contains("raw")) {
                let kind = "application/vnd.github.raw+json; charset=utf-8".to_owned();
                return Answer {
                    status: 200,
                    headers: vec![("content-type", kind)],
                    body: content,
                };
            }
            Answer::new(200, &shapes::file(world, repo, &path, &content))
        })
    }

    fn list_pulls(&self, call: &Call) -> Answer {
        self.with_repo(call, |world, repo| {
            let is_wanted = |pull: &Pull| match call.query("state").unwrap_or("open") {
                "all" => true,
                "closed" => !pull.is_open,
                _ => pull.is_open,
            };
            let mut pulls: Vec<&Pull> =
                repo.pulls.values().filter(|pull| is_wanted(pull)).collect();
            // The newest first is the default.
            if call.query("direction") != Some("asc") {
                pulls.reverse();
            }
            let shown = |pull: &&Pull| shapes::pull_in_list(world, repo, pull);
            paged(world, call, &pulls.iter().map(shown).collect::<Vec<_>>())
        })
    }

    fn list_comments(&self, call: &Call) -> Answer {
        self.with_repo(call, |world, repo| {
            let (name, number) = (&repo.full_name, call.number(4));
            let of = world
                .comments
                .iter()
                .filter(|comment| comment.repository == *name && comment.number == number);
            paged(
                world,
                call,
                &of.map(|comment| shapes::comment(world, repo, comment)).collect::<Vec<_>>(),
            )
        })
    }

    fn create_comment(&mut self, call: &Call, account: &str) -> Answer {
        let repository = call.repository().unwrap();
        let number = call.number(4);
        if self.pull(&repository, number).is_none() {
            return Answer::not_found();
        }
        let repository = self.repository(&repository).unwrap().full_name.clone();
        let body = call.body["body"].as_str().unwrap().to_owned();
        let comment = self.add_comment(&repository, number, account, body);
        self.with_repo(call, |world, repo| {
            Answer::new(201, &shapes::comment(world, repo, &comment))
        })
    }

    pub(crate) fn add_comment(
        &mut self,
        repository: &str,
        number: u64,
        author: &str,
        body: String,
    ) -> Comment {
        let (id, at) = (self.next_id(), now());
        let comment = Comment {
            id,
            repository: repository.to_owned(),
            number,
            author: author.to_owned(),
            body,
            edits: 0,
            created_at: at,
            updated_at: at,
        };
        self.comments.push(comment.clone());
        comment
    }

    fn edit_comment(&mut self, call: &Call) -> Answer {
        let found = self.comments.iter_mut().find(|comment| comment.id == call.number(5));
        let found = found.map(|comment| {
            call.body["body"].as_str().unwrap().clone_into(&mut comment.body);
            comment.edits += 1;
            comment.updated_at = now();
            comment.clone()
        });
        self.show_comment(found)
    }

    fn show_comment(&self, found: Option<Comment>) -> Answer {
        let Some(comment) = found else { return Answer::not_found() };
        let repo = self.repository(&comment.repository).unwrap();
        Answer::new(200, &shapes::comment(self, repo, &comment))
    }

    fn set_status(&mut self, call: &Call) -> Answer {
        let text = |name: &str| call.body[name].as_str().unwrap_or_default().to_owned();
        if text("description").chars().count() > 140 {
            return Answer::error(
                422,
                "Validation Failed: description is too long (maximum is 140)",
            );
        }
        let status = Status {
            id: self.next_id(),
            repository: call.repository().unwrap(),
            commit: call.parts()[4].to_owned(),
            context: text("context"),
            state: text("state"),
            description: text("description"),
            target_url: text("target_url"),
            at: now(),
        };
        let repo = self.repository(&status.repository);
        if !repo.is_some_and(|repo| repo.has_commit(&status.commit)) {
            return Answer::error(422, "No commit found for SHA");
        }
        self.statuses.push(status.clone());
        self.with_repo(call, |world, repo| Answer::new(201, &shapes::status(world, repo, &status)))
    }
}

/// Deployments.
impl World {
    fn list_deployments(&self, call: &Call) -> Answer {
        self.with_repo(call, |world, repo| {
            let is_wanted = |deployment: &&Deployment| {
                let is =
                    |name: &str, value: &str| call.query(name).is_none_or(|text| text == value);
                deployment.repository == repo.full_name
                    && is("sha", &deployment.commit)
                    && is("environment", &deployment.environment)
            };
            let newest = world.deployments.iter().rev().filter(is_wanted);
            let shown = newest.map(|deployment| shapes::deployment(world, repo, deployment));
            paged(world, call, &shown.collect::<Vec<_>>())
        })
    }

    fn create_deployment(&mut self, call: &Call) -> Answer {
        let repository = call.repository().unwrap();
        let repo = self.repository(&repository).unwrap();
        let text = |name: &str, usual: &str| call.body[name].as_str().unwrap_or(usual).to_owned();
        let commit = text("ref", "");
        if !repo.has_commit(&commit) {
            return Answer::error(422, &format!("No ref found for: {commit}"));
        }
        // A deployment of what is behind the default branch is merged instead.
        if call.body["auto_merge"] != false {
            return Answer::error(409, "Conflict merging main into the ref");
        }
        let statuses = self.statuses.iter().filter(|status| status.commit == commit);
        let last: std::collections::BTreeMap<&str, &str> =
            statuses.map(|status| (&*status.context, &*status.state)).collect();
        let required: Vec<&str> = match call.body["required_contexts"].as_array() {
            Some(named) => named.iter().filter_map(Value::as_str).collect(),
            None => last.keys().copied().collect(),
        };
        if required.iter().any(|context| last.get(context) != Some(&"success")) {
            return Answer::error(409, "Conflict: Commit status checks failed");
        }
        let deployment = Deployment {
            id: 0,
            repository: repo.full_name.clone(),
            commit,
            environment: text("environment", "production"),
            is_transient: call.body["transient_environment"] == true,
            payload: call.body["payload"].clone(),
            statuses: Vec::new(),
            at: now(),
        };
        if deployment.environment.chars().count() > 255 {
            return Answer::error(422, "Validation Failed: environment is too long");
        }
        let deployment = Deployment { id: self.next_id(), ..deployment };
        self.deployments.push(deployment.clone());
        self.with_repo(call, |world, repo| {
            Answer::new(201, &shapes::deployment(world, repo, &deployment))
        })
    }

    fn set_deployment_status(&mut self, call: &Call) -> Answer {
        let text = |name: &str| call.body[name].as_str().unwrap_or_default().to_owned();
        let status = DeploymentStatus {
            id: self.next_id(),
            state: text("state"),
            description: text("description"),
            log_url: text("log_url"),
            environment_url: text("environment_url"),
            at: now(),
        };
        if status.description.chars().count() > 140 {
            return Answer::error(
                422,
                "Validation Failed: description is too long (maximum is 140 characters)",
            );
        }
        let repository = call.repository().unwrap();
        let repository = self.repository(&repository).unwrap().full_name.clone();
        let found = self.deployments.iter_mut().find(|deployment| {
            deployment.id == call.number(4) && deployment.repository == repository
        });
        let Some(found) = found else { return Answer::not_found() };
        if found.statuses.len() >= DEPLOYMENT_STATUSES_MAX {
            return Answer::error(
                422,
                "Validation Failed: This deployment has reached the maximum number of statuses.",
            );
        }
        found.statuses.push(status.clone());
        let deployment = found.clone();
        if status.state == "success" && call.body["auto_inactive"] != false {
            self.make_others_inactive(&deployment);
        }
        self.with_repo(call, |world, repo| {
            Answer::new(201, &shapes::deployment_status(world, repo, &deployment, &status))
        })
    }

    /// As GitHub does, for environments that are not transient.
    fn make_others_inactive(&mut self, newest: &Deployment) {
        for other in &mut self.deployments {
            let is_same = other.repository == newest.repository
                && other.environment == newest.environment
                && other.id != newest.id;
            let is_live = other.statuses.last().filter(|status| status.state == "success").cloned();
            if let Some(live) = is_live.filter(|_| is_same && !other.is_transient) {
                other.statuses.push(DeploymentStatus { state: "inactive".to_owned(), ..live });
            }
        }
    }
}

fn percent_decoded(path: &str) -> String {
    let pair = format!("it={}", path.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).next().unwrap().1.into_owned()
}

/// A page of `all`, with links to the other pages.
fn paged(world: &World, call: &Call, all: &[Value]) -> Answer {
    let number = |name: &str, usual: usize| {
        call.query(name).and_then(|text| text.parse().ok()).unwrap_or(usual).max(1)
    };
    let (size, page) = (number("per_page", 30).min(100), number("page", 1));
    let last = all.len().div_ceil(size).max(1);
    let shown: Vec<&Value> = all.iter().skip((page - 1) * size).take(size).collect();
    let answer = Answer::new(200, &json!(shown));
    if page >= last {
        return answer;
    }
    let others = call.query.iter().filter(|(key, _)| key != "page");
    let others: Vec<String> = others.map(|(key, value)| format!("{key}={value}&")).collect();
    let others = others.concat();
    let at = format!("{}{}?{others}page=", world.api(), call.path);
    let next = page + 1;
    answer.with("link", format!("<{at}{next}>; rel=\"next\", <{at}{last}>; rel=\"last\""))
}

impl Repo {
    /// A file of a commit or branch.
    fn file(&self, at: &str, path: &str) -> Option<Vec<u8>> {
        let mut git = std::process::Command::new("git");
        git.arg("-C").arg(&self.git.path).args(["cat-file", "blob", &format!("{at}:{path}")]);
        let output = git.output().unwrap();
        output.status.success().then_some(output.stdout)
    }

    fn has_commit(&self, commit: &str) -> bool {
        let mut git = std::process::Command::new("git");
        git.arg("-C").arg(&self.git.path).args(["cat-file", "-e", &format!("{commit}^{{commit}}")]);
        git.output().unwrap().status.success()
    }
}
