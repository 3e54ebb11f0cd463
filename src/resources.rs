//! What the machine has left: memory and disk.

use std::path::{Path, PathBuf};

/// Bytes of memory that this process can still get without swapping: what the system has available, or less where a
/// control group limits it. Nothing if the system does not say.
pub fn free_memory() -> Option<u64> {
    free_memory_in(Path::new("/"))
}

fn free_memory_in(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10;
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    Some(groups.lines().filter_map(|line| free_in_group(root, line)).fold(system, u64::min))
}

/// What a line of `/proc/self/cgroup` and the groups around that one leave.
fn free_in_group(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    // Version 2 has one line without controllers.
    let (mount, limit, usage, inactive) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        }
        _ => return None,
    };
    let number = |file: PathBuf| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let free = |group: &Path| {
        let group = root.join(mount).join(group);
        let statistics = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cache = statistics.lines().find_map(|line| line.strip_prefix(inactive)?.parse::<u64>().ok());
        // Files in the cache make room when asked to.
        let used = number(group.join(usage))?.saturating_sub(cache.unwrap_or(0));
        Some(number(group.join(limit))?.saturating_sub(used))
    };
    Path::new(path.trim_start_matches('/')).ancestors().filter_map(free).min()
}

/// Bytes that can still be written where `path` is or will be. Nothing if the system does not say.
pub fn free_disk(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|folder| folder.is_dir())?;
    #[cfg(unix)]
    {
        let file_system = rustix::fs::statvfs(existing).ok()?;
        Some(file_system.f_bavail.saturating_mul(file_system.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        free_memory_in(root.path())
    }

    const MEMORY: (&str, &str) = ("proc/meminfo", "MemTotal:  900 kB\nMemFree:  1 kB\nMemAvailable:  800 kB\n");

    #[test]
    fn the_tightest_limit_counts() {
        assert_eq!(machine(&[]), None);
        assert_eq!(machine(&[MEMORY]), Some(800 << 10));
        let second = [
            MEMORY,
            ("proc/self/cgroup", "0::/user/shell\n"),
            ("sys/fs/cgroup/user/memory.max", "5000\n"),
            ("sys/fs/cgroup/user/memory.current", "3000\n"),
            ("sys/fs/cgroup/user/memory.stat", "anon 7\ninactive_file 1000\n"),
            ("sys/fs/cgroup/user/shell/memory.max", "max\n"),
            ("sys/fs/cgroup/user/shell/memory.current", "3000\n"),
        ];
        assert_eq!(machine(&second), Some(3000));
        let first = [
            MEMORY,
            ("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/a\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "70000\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "60000\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "70000\n"),
        ];
        assert_eq!(machine(&first), Some(0));
    }

    #[test]
    fn this_machine_has_something_left() {
        assert!(cfg!(not(target_os = "linux")) || free_memory().unwrap() > 0);
        assert!(cfg!(not(unix)) || free_disk(Path::new("absent/folder/run")).is_some());
    }
}
