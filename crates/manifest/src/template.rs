//! Texts with variables, such as the values of build arguments.

use std::sync::Arc;

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

    /// All variables by name.
    pub(super) fn by_name() -> Vec<(String, Self)> {
        Self::ALL.map(|variable| (variable.as_str().to_owned(), variable)).to_vec()
    }
}

/// A `${` that cannot be filled in.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// No variable has this name.
    #[error("unknown variable `${{{}}}`; {}", shown(name), advice(name, known))]
    UnknownVariable {
        /// The name between the braces.
        name: String,
        /// The names that there are, for messages.
        known: Arc<[String]>,
    },
    /// The closing brace is missing.
    #[error("`${{` is never closed; write `$${{` for the two characters themselves")]
    Unclosed,
}

fn advice(name: &str, known: &[String]) -> String {
    let names = || known.iter().map(String::as_str);
    match closest(name, names()) {
        Some(variable) => format!("did you mean `${{{variable}}}`?"),
        None => format!("the variables are {}; write `$${{` for a literal `${{`", listed(names())),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part<V> {
    Text(String),
    Variable(V),
}

/// A text with variables, written `${NAME}`. Directly before `{`, `$$` stands for one `$`, so
/// `$${NAME}` is the text `${NAME}`. Elsewhere `$` stands for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template<V = Variable> {
    parts: Vec<Part<V>>,
}

impl<V: Clone> Template<V> {
    /// Reads a text whose variables are `known`, by name.
    ///
    /// # Errors
    /// All [`TemplateError`]s, in the order of the text.
    pub(super) fn parse(text: &str, known: &[(String, V)]) -> Result<Self, Vec<TemplateError>> {
        let (mut parts, mut errors) = (Vec::new(), Vec::new());
        let mut names_of_known: Option<Arc<[String]>> = None;
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
            if let Some((_, variable)) = known.iter().find(|(known, _)| known == name) {
                parts.push(Part::Variable(variable.clone()));
            } else {
                let names = || known.iter().map(|(known, _)| shown(known)).collect();
                let known = Arc::clone(names_of_known.get_or_insert_with(names));
                errors.push(TemplateError::UnknownVariable { name: name.to_owned(), known });
            }
            rest = after;
        }
        push_text(&mut parts, rest);
        if errors.is_empty() { Ok(Self { parts }) } else { Err(errors) }
    }

    /// Returns the text with every variable replaced by the result of `value`.
    pub fn fill(&self, value: impl Fn(&V) -> String) -> String {
        let fill = |part: &Part<V>| match part {
            Part::Text(text) => text.clone(),
            Part::Variable(variable) => value(variable),
        };
        self.parts.iter().map(fill).collect()
    }
}

impl<V> Default for Template<V> {
    fn default() -> Self {
        Self { parts: Vec::new() }
    }
}

/// The index of the next `{` that follows a `$`.
fn next_opening(text: &str) -> Option<usize> {
    text.find("${").map(|dollar| dollar + 1)
}

fn push_text<V>(parts: &mut Vec<Part<V>>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(last)) => last.push_str(text),
        _ => parts.push(Part::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Template, Vec<TemplateError>> {
        Template::parse(text, &Variable::by_name())
    }

    fn filled(text: &str) -> String {
        let template = parse(text).unwrap();
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
        let template = parse("${BRANCH}").unwrap();
        assert_eq!(template.fill(|_| "${COMMIT_HASH}".to_owned()), "${COMMIT_HASH}");
    }

    #[test]
    fn every_mistake_is_reported() {
        let errors = parse("${branch} ${HOME} ${} ${BRANCH").unwrap_err();
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
