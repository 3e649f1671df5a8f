//! An error with its causes as one line, for logs, reports and messages to people.

use std::error::Error;
use std::fmt;

/// Displays an error and its causes, joined by colons. A message that the line has already is left out, because some
/// libraries put the cause into the error's own message.
#[derive(Clone, Copy, Debug)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !line.contains(&message) {
                line.push_str(": ");
                line.push_str(&message);
            }
            cause = error.source();
        }
        f.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    enum ReadError {
        #[error("cannot read the log")]
        Read(#[source] io::Error),
        #[error("cannot read the log: {0}")]
        Repeating(#[source] io::Error),
    }

    #[test]
    fn a_line_has_each_cause_once() {
        let cause = || io::Error::other("the disk is gone");
        for error in [ReadError::Read(cause()), ReadError::Repeating(cause())] {
            assert_eq!(ErrorChain(&error).to_string(), "cannot read the log: the disk is gone");
        }
        assert_eq!(ErrorChain(&cause()).to_string(), "the disk is gone");
    }
}
