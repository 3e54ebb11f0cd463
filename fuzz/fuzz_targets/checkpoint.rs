#![no_main]

use libfuzzer_sys::fuzz_target;
use rarunet_cuda_fuzz::{Folder, readers};
use std::sync::LazyLock;

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

fuzz_target!(init: rarunet_cuda_fuzz::begin(), |bytes: &[u8]| readers::checkpoint(FOLDER.path(), bytes));
