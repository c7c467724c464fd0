//! A certificate that somebody else keeps in files.

use std::{path::Path, time::Duration};

use egressgateway::Error;

use super::{certificate, server::Presented};

/// How often the files are read: who renews them does so long before they end.
const INTERVAL: Duration = Duration::from_secs(10);

/// Presents what the folder holds, and what it holds later; never ends.
pub(crate) async fn follow(folder: &Path, presented: &Presented) {
    let mut held = None;
    loop {
        match read(folder).await {
            Ok(files) if held.as_ref() == Some(&files) => {}
            Ok(files) => {
                match certificate::present(&files.0, &files.1) {
                    Ok(certificate) => {
                        tracing::info!(folder = %folder.display(), "webhooks present a new certificate");
                        presented.set(certificate);
                    }
                    Err(error) => {
                        tracing::warn!(folder = %folder.display(), error = error.chain(), "cannot read the new webhook certificate; keeping the current one");
                    }
                }
                held = Some(files);
            }
            Err(error) => tracing::warn!(
                error = error.chain(),
                "cannot read the new webhook certificate; keeping the current one"
            ),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn read(folder: &Path) -> Result<(String, String), Error> {
    let text = async |name| {
        let path = folder.join(name);
        tokio::fs::read_to_string(&path)
            .await
            .map_err(|error| Error::from_io(error, format!("read {}", path.display())))
    };
    Ok((text("tls.crt").await?, text("tls.key").await?))
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::{super::certificate::Pair, *};

    #[tokio::test(start_paused = true)]
    async fn files_that_change_are_presented_and_broken_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |certificate: &str, key: &str| {
            std::fs::write(folder.path().join("tls.crt"), certificate).unwrap();
            std::fs::write(folder.path().join("tls.key"), key).unwrap();
        };
        let pair = || Pair::make(&["a.b.svc".to_owned()], "", OffsetDateTime::now_utc()).unwrap();
        let (first, second, presented) = (pair(), pair(), Presented::default());
        let shown = || {
            presented
                .certificate()
                .map(|certificate| certificate.cert[0].clone())
        };
        write(&first.certificate, &first.key);
        let following = async {
            while shown().is_none() {
                tokio::time::sleep(INTERVAL).await;
            }
            let before = shown();
            write(&second.certificate, "nonsense");
            tokio::time::sleep(INTERVAL * 2).await;
            assert_eq!(shown(), before);
            write(&second.certificate, &second.key);
            while shown() == before {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = follow(folder.path(), &presented) => {}
            () = following => {}
        }
    }
}
