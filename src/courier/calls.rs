//! The system calls that the network process keeps (seccomp): sockets, memory, threads, clocks, and reading files. An
//! allow-list; everything else answers ENOSYS, as on an old kernel, so that a C library that tries something newer falls
//! back instead of dying.
//!
//! Not among them: starting programs, writing or making files, other processes' memory, changing who we are, mounts,
//! keys, BPF, `io_uring`. `socket` is for IP, Unix (name services, the log daemon) and route netlink (addresses of
//! interfaces) only; `openat` for reading only; `prctl` and `ioctl` without what could give anything back.

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch, apply_filter,
};

/// Allowed whatever their arguments.
const FREE: &[c_long] = &[
    // Sockets.
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    // Descriptors and reading.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Clocks, randomness, who and where we are.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getcpu,
    libc::SYS_getrusage,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads, signals of our own, the end.
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The same under older names, which this architecture still has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Flags of `openat` that write, make or truncate.
const WRITING: i32 =
    libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | (libc::O_TMPFILE & !libc::O_DIRECTORY);
/// A thread, as the C libraries make them: memory, files and handlers shared. A process of its own it is not.
const THREAD: i32 = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;

/// Close what is not needed, for this thread and all that it starts; says how far.
///
/// # Errors
/// One line: what could not be done. The caller must end then.
pub fn close() -> Result<&'static str, String> {
    let fail = |e: &dyn std::fmt::Display| format!("seccomp: {e}");
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok("no seccomp for this machine") };
    let filter = SeccompFilter::new(
        rules().map_err(|e| fail(&e))?,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        SeccompAction::Allow,
        arch,
    )
    .map_err(|e| fail(&e))?;
    let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| fail(&e))?;
    apply_filter(&program).map_err(|e| fail(&e))?;
    Ok("seccomp")
}

fn rules() -> Result<BTreeMap<i64, Vec<Rule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<Rule>> = FREE.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let number = |value: i32| u64::from(value.unsigned_abs());
    let is = |argument, value: i32| Condition::new(argument, Len::Dword, Op::Eq, number(value));
    let masked = |argument, mask: i32, value: i32| {
        Condition::new(argument, Len::Dword, Op::MaskedEq(number(mask)), number(value))
    };
    let any = |argument, values: &[i32]| -> Result<Vec<Rule>, seccompiler::BackendError> {
        values.iter().map(|value| Rule::new(vec![is(argument, *value)?])).collect()
    };
    let mut families = any(0, &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX])?;
    families.push(Rule::new(vec![is(0, libc::AF_NETLINK)?, is(2, libc::NETLINK_ROUTE)?])?);
    rules.insert(libc::SYS_socket, families);
    rules.insert(libc::SYS_socketpair, any(0, &[libc::AF_UNIX])?);
    rules.insert(libc::SYS_openat, vec![Rule::new(vec![masked(2, WRITING, libc::O_RDONLY)?])?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![Rule::new(vec![masked(1, WRITING, libc::O_RDONLY)?])?]);
    // `clone3` hides its flags in memory: it is not there, and the C library takes `clone`.
    rules.insert(libc::SYS_clone, vec![Rule::new(vec![masked(0, THREAD, THREAD)?])?]);
    // Our own threads only.
    rules.insert(libc::SYS_tgkill, any(0, &[i32::try_from(std::process::id()).unwrap_or(i32::MAX)])?);
    // A name for a thread, and for a region of memory.
    rules.insert(libc::SYS_prctl, any(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA])?);
    // Blocking or not; how much is there to read.
    let ioctl = [i32::try_from(libc::FIONBIO), i32::try_from(libc::FIONREAD)];
    rules.insert(libc::SYS_ioctl, any(1, &ioctl.into_iter().flatten().collect::<Vec<_>>())?);
    // Limits are read, not set.
    rules.insert(libc::SYS_prlimit64, vec![Rule::new(vec![Condition::new(2, Len::Qword, Op::Eq, 0)?])?]);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::{fs, io, net::ToSocketAddrs, process::Command, thread};

    use super::*;

    /// In a thread that has closed its calls; the others of the test go on as they are.
    fn closed<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        let inside = move || {
            assert_eq!(close().unwrap(), "seccomp");
            body()
        };
        thread::spawn(inside).join().unwrap()
    }

    fn refused<T>(result: io::Result<T>) -> bool {
        matches!(result, Err(e) if e.raw_os_error() == Some(libc::ENOSYS))
    }

    #[test]
    fn no_file_is_written_made_renamed_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        let path = file.clone();
        closed(move || {
            assert!(refused(fs::write(&path, "y")));
            assert!(refused(fs::OpenOptions::new().append(true).open(&path)));
            assert!(refused(fs::OpenOptions::new().read(true).write(true).open(&path)));
            assert!(refused(fs::File::create(path.with_extension("new"))));
            assert!(refused(fs::rename(&path, path.with_extension("new"))));
            assert!(refused(fs::remove_file(&path)));
            assert!(refused(fs::create_dir(path.with_extension("dir"))));
            assert!(refused(std::os::unix::fs::symlink(&path, path.with_extension("link"))));
            assert!(refused(fs::set_permissions(&path, fs::metadata(&path).unwrap().permissions())));
            assert_eq!(fs::read(&path).unwrap(), b"x", "reading stays");
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_program_is_started_and_nobody_else_is_touched_or_become() {
        let parent = std::process::id();
        closed(move || {
            assert!(Command::new("/bin/true").status().is_err());
            let pid = nix::unistd::Pid::from_raw(i32::try_from(parent).unwrap());
            let enosys = Err(nix::errno::Errno::ENOSYS);
            assert_eq!(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT), enosys);
            assert_eq!(nix::unistd::chroot("/"), enosys);
        });
    }

    #[test]
    fn only_sockets_of_the_internet_names_and_routes_are_made() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
        closed(|| {
            let make = |family, kind, protocol: Option<SockProtocol>| socket(family, kind, SockFlag::empty(), protocol);
            assert!(make(AddressFamily::Inet, SockType::Stream, None).is_ok());
            assert!(make(AddressFamily::Unix, SockType::Stream, None).is_ok());
            assert!(make(AddressFamily::Netlink, SockType::Raw, Some(SockProtocol::NetlinkRoute)).is_ok());
            assert!(make(AddressFamily::Netlink, SockType::Raw, Some(SockProtocol::NetlinkAudit)).is_err());
            assert!(make(AddressFamily::Packet, SockType::Raw, None).is_err());
            assert!(make(AddressFamily::Vsock, SockType::Stream, None).is_err());
        });
    }

    #[test]
    fn names_are_found_threads_run_and_the_clock_goes_on() {
        closed(|| {
            assert!(("localhost", 80).to_socket_addrs().unwrap().next().is_some());
            assert_eq!(thread::Builder::new().name("t".into()).spawn(|| 7).unwrap().join().unwrap(), 7);
            thread::sleep(std::time::Duration::from_millis(1));
        });
    }
}
