//! Lists the tags of a repository, page by page.

use std::collections::BTreeSet;

use reqwest::header::LINK;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use stagely_protocol::ImageRef;
use url::Url;

use super::address::url;
use super::client::RegistryClient;
use super::error::RegistryError;
use super::response::{checked, read};

/// Most tags of one page. Registries may give fewer.
const PAGE_TAGS_MAX: usize = 100;

/// The largest page. 100 tags of 128 characters need far less, but some registries give all tags at once.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most pages that are read, in case that a registry's list never ends. Further tags stay.
const PAGES_MAX: usize = 1_000;

/// A page of tags. Some registries write `null` for none.
#[derive(Deserialize)]
struct TagsPage {
    tags: Option<Vec<String>>,
}

/// The tags of `repository`; none where there is no such repository.
pub(super) async fn tags(
    client: &RegistryClient,
    repository: &str,
) -> Result<BTreeSet<ImageRef>, RegistryError> {
    let invalid =
        |tag: &str| RegistryError::InvalidResponse(format!("a tag of {repository}: {tag:?}"));
    // Only the host and the path of this image are used.
    let any: ImageRef = repository.parse().map_err(|_| invalid("latest"))?;
    let first = url(client.config(), &any, &format!("tags/list?n={PAGE_TAGS_MAX}"))?;
    let mut page: Url = first.parse().map_err(|_| invalid("latest"))?;
    let mut found = BTreeSet::new();
    for _ in 0..PAGES_MAX {
        let response = client.send(client.get(page.clone())).await?;
        if response.status() == StatusCode::NOT_FOUND {
            break;
        }
        let response = checked(response).await?;
        let next = next_page(&page, &response)?;
        let tags: TagsPage = serde_json::from_slice(&read(response, PAGE_BYTES_MAX).await?)
            .map_err(|error| RegistryError::InvalidResponse(format!("no list of tags: {error}")))?;
        for tag in tags.tags.unwrap_or_default() {
            let image = format!("{repository}:{tag}").parse().map_err(|_| invalid(&tag))?;
            found.insert(image);
        }
        match next {
            Some(next) if next != page => page = next,
            _ => break,
        }
    }
    Ok(found)
}

/// The page after `page`, which the response names in `Link: </v2/…?last=…>; rel="next"`. A page of another
/// origin is refused, because the request for it would carry the password.
///
/// Source: OCI distribution specification, "Listing Tags".
fn next_page(page: &Url, response: &Response) -> Result<Option<Url>, RegistryError> {
    let Some(link) = response.headers().get(LINK) else { return Ok(None) };
    let address = link.to_str().ok().and_then(|link| {
        let (address, _) = link.trim_start().strip_prefix('<')?.split_once('>')?;
        page.join(address).ok()
    });
    match address {
        Some(next) if next.origin() == page.origin() => Ok(Some(next)),
        _ => Err(RegistryError::InvalidResponse("its next page of tags lies elsewhere".to_owned())),
    }
}
