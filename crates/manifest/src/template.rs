//! The text of a build argument and its variables.

use thiserror::Error;

use super::suggest::{closest, listed, shown};

/// A variable of build arguments, written `${NAME}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variable {
    /// The full hash of the commit.
    CommitHash,
    /// The branch of the commit; empty if none is known.
    Branch,
    /// The number of the pull request; empty if there is none.
    PrNumber,
    /// The id of the project (`proj_…`).
    ProjectId,
    /// 12 hexadecimal digits made of project, environment and commit. All builds of a run share them,
    /// and so do all runs of the same commit in the same environment.
    StagelyHash,
}

impl Variable {
    /// All variables, in the order of the documentation.
    pub const ALL: [Self; 5] =
        [Self::CommitHash, Self::Branch, Self::PrNumber, Self::ProjectId, Self::StagelyHash];

    /// The name between the braces.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CommitHash => "COMMIT_HASH",
            Self::Branch => "BRANCH",
            Self::PrNumber => "PR_NUMBER",
            Self::ProjectId => "PROJECT_ID",
            Self::StagelyHash => "STAGELY_HASH",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|variable| variable.as_str() == name)
    }
}

/// A `${` that cannot be filled in.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// No variable has this name.
    #[error("unknown variable `${{{}}}`; {}", shown(.0), advice(.0))]
    UnknownVariable(String),
    /// The closing brace is missing.
    #[error("`${{` is never closed; write `$${{` for the two characters themselves")]
    Unclosed,
}

fn advice(name: &str) -> String {
    let names = Variable::ALL.map(Variable::as_str);
    match closest(name, names) {
        Some(variable) => format!("did you mean `${{{variable}}}`?"),
        None => format!("the variables are {}; write `$${{` for a literal `${{`", listed(names)),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(Variable),
}

/// A text with variables, written `${NAME}`. Directly before `{`, `$$` stands for one `$`, so
/// `$${NAME}` is the text `${NAME}`. Elsewhere `$` stands for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Reads the text of a build argument.
    ///
    /// # Errors
    /// All [`TemplateError`]s, in the order of the text.
    pub fn parse(text: &str) -> Result<Self, Vec<TemplateError>> {
        let (mut parts, mut errors) = (Vec::new(), Vec::new());
        let mut rest = text;
        while let Some(brace) = next_opening(rest) {
            let before = &rest[..brace];
            let literal = before.trim_end_matches('$');
            let dollars = before.len() - literal.len();
            push_text(&mut parts, literal);
            push_text(&mut parts, &"$".repeat(dollars / 2));
            rest = &rest[brace + 1..];
            if dollars.is_multiple_of(2) {
                push_text(&mut parts, "{");
                continue;
            }
            let Some((name, after)) = rest.split_once('}') else {
                errors.push(TemplateError::Unclosed);
                break;
            };
            match Variable::named(name) {
                Some(variable) => parts.push(Part::Variable(variable)),
                None => errors.push(TemplateError::UnknownVariable(name.to_owned())),
            }
            rest = after;
        }
        push_text(&mut parts, rest);
        if errors.is_empty() { Ok(Self { parts }) } else { Err(errors) }
    }

    /// Returns the text with every variable replaced by the result of `value`.
    pub fn fill(&self, value: impl Fn(Variable) -> String) -> String {
        let fill = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Variable(variable) => value(*variable),
        };
        self.parts.iter().map(fill).collect()
    }
}

/// The index of the next `{` that follows a `$`.
fn next_opening(text: &str) -> Option<usize> {
    text.find("${").map(|dollar| dollar + 1)
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(last)) => last.push_str(text),
        _ => parts.push(Part::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let template = Template::parse(text).unwrap();
        template.fill(|variable| format!("<{}>", variable.as_str()))
    }

    #[test]
    fn every_variable_is_filled_in() {
        assert_eq!(filled("${COMMIT_HASH}"), "<COMMIT_HASH>");
        assert_eq!(filled("v-${BRANCH}-${PR_NUMBER}"), "v-<BRANCH>-<PR_NUMBER>");
        assert_eq!(filled("${PROJECT_ID}${STAGELY_HASH}"), "<PROJECT_ID><STAGELY_HASH>");
    }

    #[test]
    fn a_dollar_stands_for_itself_except_before_a_brace() {
        for text in ["", "$", "$$", "pa$$word", "$BRANCH", "{BRANCH}", "$ {BRANCH}", "100$", "}"] {
            assert_eq!(filled(text), text);
        }
    }

    #[test]
    fn doubled_dollars_before_a_brace_stand_for_one() {
        assert_eq!(filled("$${BRANCH}"), "${BRANCH}");
        assert_eq!(filled("$$${BRANCH}"), "$<BRANCH>");
        assert_eq!(filled("$$$${BRANCH}"), "$${BRANCH}");
        assert_eq!(filled("$${"), "${");
        assert_eq!(filled("é$${${BRANCH}}"), "é${<BRANCH>}");
    }

    #[test]
    fn values_are_not_searched_for_variables() {
        let template = Template::parse("${BRANCH}").unwrap();
        assert_eq!(template.fill(|_| "${COMMIT_HASH}".to_owned()), "${COMMIT_HASH}");
    }

    #[test]
    fn every_mistake_is_reported() {
        let errors = Template::parse("${branch} ${HOME} ${} ${BRANCH").unwrap_err();
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 4);
        assert_eq!(errors[0], "unknown variable `${branch}`; did you mean `${BRANCH}`?");
        assert!(
            errors[1].starts_with("unknown variable `${HOME}`; the variables are `COMMIT_HASH`")
        );
        assert!(errors[2].starts_with("unknown variable `${}`; the variables are"));
        assert!(errors[3].starts_with("`${` is never closed"));
    }
}
