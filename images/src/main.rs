//! Makes the archive of one image from its root file system: see `scripts/images`, which makes
//! both.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use egressgateway_images::product;

/// Writes the archive of an image, and prints its name and digest.
#[derive(Parser)]
struct Arguments {
    /// The image, as images/contents calls it.
    image: String,
    /// Its root file system, as scripts/rootfs makes it.
    root: PathBuf,
    /// The archive.
    file: PathBuf,
    /// The commit that it is built from, for its labels.
    #[arg(long, default_value = "")]
    revision: String,
    /// When that was made, in seconds since 1970.
    #[arg(long, default_value_t = 0)]
    created: u64,
}

fn main() -> ExitCode {
    let Arguments {
        image,
        root,
        file,
        revision,
        created,
    } = Arguments::parse();
    let Some(image) = product(&image, &revision, created) else {
        eprintln!("images: {image:?} is no image: images/contents names them");
        return ExitCode::FAILURE;
    };
    match image.write(&root, &file) {
        Ok(digest) => {
            println!("{} {digest}", image.name);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("images: {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}
