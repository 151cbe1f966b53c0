//! Paths in reports.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// Serializes a path as text, for `#[serde(serialize_with = "squisher::paths::as_text")]`; none is null.
///
/// A path need not be UTF-8, and serde's own way refuses such a one: after the work is done, in a report of it.
/// Here what is no UTF-8 becomes U+FFFD, as in messages.
///
/// # Errors
/// Only what `serializer` refuses.
pub fn as_text<'a, P, S>(path: &'a P, serializer: S) -> Result<S::Ok, S::Error>
where
    &'a P: Into<Option<&'a PathBuf>>,
    S: Serializer,
{
    let path: Option<&PathBuf> = path.into();
    path.map(|path| path.to_string_lossy()).serialize(serializer)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[derive(Serialize)]
    struct Report {
        #[serde(serialize_with = "as_text")]
        output: PathBuf,
        #[serde(serialize_with = "as_text")]
        mask: Option<PathBuf>,
        #[serde(serialize_with = "as_text")]
        gram: Option<PathBuf>,
    }

    #[test]
    fn a_path_that_is_no_text_is_written_as_near_to_it_as_text_comes() {
        let path = PathBuf::from(OsString::from_vec(b"a\xFFb".to_vec()));
        assert!(serde_json::to_string(&path).is_err());
        let report = Report { output: path.clone(), mask: Some(path), gram: None };
        let text = serde_json::to_string(&report).expect("paths are text");
        assert_eq!(text, r#"{"output":"a�b","mask":"a�b","gram":null}"#);
    }
}
