fn main() -> std::process::ExitCode {
    evercred::credmon_main()
}
