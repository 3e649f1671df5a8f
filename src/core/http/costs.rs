//! `/cost` and `/budget`: what was spent, and more than the configuration allows.

use std::cmp::Reverse;

use axum::Json;
use axum::extract::State;
use stagely_state::{BudgetScope, Environment, Event, Month, Project, Spending, Timestamp, Usd};

use super::auth::{Admin, Reader};
use super::{ApiError, ApiJson, ApiQuery, ApiState};
use crate::api::{
    AllowBudget, BudgetView, ErrorBody, GetCost, MonthCostView, ProjectCostView,
    PullRequestCostView, SpendingView,
};
use crate::config::BudgetConfig;
use crate::core::clock::now;
use crate::core::records::Records;

/// The most that can be allowed at once, in US dollars.
const ALLOWED_MAX: Usd = Usd(1_000_000 * 1_000_000);

/// The most pull requests in a response.
const PULL_REQUESTS_MAX: usize = 1_000;

/// Shows what a month has cost, and the budgets.
#[utoipa::path(get, path = "/cost", params(GetCost), responses(
    (status = 200, body = MonthCostView),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody, description = "There is no such project."),
))]
pub(super) async fn get(
    State(api): State<ApiState>,
    _: Reader,
    ApiQuery(wanted): ApiQuery<GetCost>,
) -> Result<Json<MonthCostView>, ApiError> {
    let now = now();
    let records = api.records.read();
    let project = match &wanted.project {
        Some(name) => Some(find_project(&records, name)?.id),
        None => None,
    };
    let costs = Costs { records: &records, budget: &api.config.budget, now };
    let month = wanted.month.unwrap_or_else(|| Month::of(now));
    let is_wanted = |found: &&Project| project.is_none_or(|wanted| wanted == found.id);
    let projects = records.projects.values().filter(is_wanted);
    let projects: Vec<ProjectCostView> =
        projects.filter_map(|found| costs.project(found, month)).collect();
    let mut spending = Spending::default();
    for view in &projects {
        spending += view.spending.spending();
    }
    let is_wanted = |found: &&Environment| project.is_none_or(|wanted| wanted == found.project);
    let environments = records.environments.values().filter(is_wanted);
    let mut pull_requests: Vec<PullRequestCostView> =
        environments.filter_map(|found| costs.pull_request(found)).collect();
    pull_requests.sort_by_key(|view| Reverse(view.spending.usd));
    pull_requests.truncate(PULL_REQUESTS_MAX);
    let budget = costs.budget(BudgetScope::Month(month));
    Ok(Json(MonthCostView { month, spending: spending.into(), budget, projects, pull_requests }))
}

/// Allows a project, or one of its pull requests, more than its budget. Jobs that wait for it go on.
#[utoipa::path(post, path = "/budget", request_body = AllowBudget, responses(
    (status = 200, body = BudgetView, description = "The budget afterwards."),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody, description = "There is no such project or pull request."),
    (status = 409, body = ErrorBody, description = "There is no such budget in `stagely.toml`."),
))]
pub(super) async fn allow(
    State(api): State<ApiState>,
    _: Admin,
    ApiJson(allow): ApiJson<AllowBudget>,
) -> Result<Json<BudgetView>, ApiError> {
    let amount = allow.amount_usd;
    if amount.is_zero() || amount > ALLOWED_MAX {
        return Err(ApiError::invalid(format!(
            "amount_usd: must be more than 0 and at most {ALLOWED_MAX}"
        )));
    }
    let (project, pull_request, scopes) = {
        let records = api.records.read();
        let project = find_project(&records, &allow.project)?;
        if let Some(number) = allow.pull_request {
            let environment = find_pull_request(&records, project, number)?.id;
            (project.id, Some(environment), vec![BudgetScope::PullRequest(environment)])
        } else {
            let month = Month::of(now());
            let scopes = vec![BudgetScope::Project(project.id, month), BudgetScope::Month(month)];
            (project.id, None, scopes)
        }
    };
    let used = |api: &ApiState| {
        let records = api.records.read();
        let costs = Costs { records: &records, budget: &api.config.budget, now: now() };
        scopes.iter().find_map(|scope| costs.budget(*scope))
    };
    if used(&api).is_none() {
        let what = match allow.pull_request {
            Some(_) => "budget.pull-request",
            None => "budget.month, budget.project or budget.projects",
        };
        let message = format!("stagely.toml sets no {what}, so nothing waits for money");
        return Err(ApiError::conflict(message));
    }
    api.events.store(Event::BudgetAllowed { project, pull_request, amount }).await?;
    let view = used(&api).ok_or_else(|| ApiError::not_found("project", &allow.project))?;
    Ok(Json(view))
}

fn find_project<'a>(records: &'a Records, name: &str) -> Result<&'a Project, ApiError> {
    let found = records.projects.values().find(|project| project.name == name);
    found.ok_or_else(|| ApiError::not_found("project", name))
}

fn find_pull_request<'a>(
    records: &'a Records,
    project: &Project,
    number: u64,
) -> Result<&'a Environment, ApiError> {
    let is_it =
        |found: &&Environment| found.project == project.id && found.pull_request == Some(number);
    let found = records.environments.values().find(is_it);
    let what = format!("pull request {number} of");
    found.ok_or_else(|| ApiError::not_found(&what, &project.name))
}

/// The costs of one moment.
struct Costs<'a> {
    records: &'a Records,
    budget: &'a BudgetConfig,
    now: Timestamp,
}

impl Costs<'_> {
    fn budget(&self, scope: BudgetScope) -> Option<BudgetView> {
        self.records.budget_use(self.budget, scope, self.now).map(BudgetView::from)
    }

    /// `None` if it has cost nothing and has no budget.
    fn project(&self, project: &Project, month: Month) -> Option<ProjectCostView> {
        let spending = self.records.spending_of_project(project.id, month, self.now);
        let budget = self.budget(BudgetScope::Project(project.id, month));
        if spending.is_zero() && budget.is_none() {
            return None;
        }
        let spending = SpendingView::from(spending);
        Some(ProjectCostView { project: project.name.clone(), spending, budget })
    }

    /// `None` if it is no pull request, is closed, or has cost nothing.
    fn pull_request(&self, environment: &Environment) -> Option<PullRequestCostView> {
        let pull_request = environment.pull_request.filter(|_| !environment.state.is_closed())?;
        let spending = self.records.spending_of_environment(environment.id, self.now);
        let project = self.records.projects.get(&environment.project)?.name.clone();
        let budget = self.budget(BudgetScope::PullRequest(environment.id));
        let spending = SpendingView::of(spending)?;
        Some(PullRequestCostView { project, pull_request, spending, budget })
    }
}
