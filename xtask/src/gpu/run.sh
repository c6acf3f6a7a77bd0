#!/bin/sh
# Runs abruzzi's kernels on this machine's GPU and writes a report: ./run.sh [--out FOLDER] [--dry-run]
#
# Every kernel test, each in a process of its own, so that a fault in one does not spoil the next; the four tools of
# compute-sanitizer on the same tests with few shapes; every bench, and beside it the time the emulator models. Needs a GPU of
# compute capability 9.0, a driver for CUDA 13 (580 or newer) and, for compute-sanitizer, the CUDA toolkit; neither Rust nor
# a network. With --dry-run everything runs on the emulator, a few tests only: that needs no GPU and shows that the rest works.
#
# The report is FOLDER/<date>-<gpu>.md (FOLDER: here). Exit code: 0 if all passed, 1 if something failed, 2 if it could not run.
set -u

dry=0
out=.
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --out) shift; out=${1:?"--out: which folder?"} ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift
done

fail() { echo "run.sh: $*" >&2; exit 2; }

here=$(cd "$(dirname "$0")" && pwd) || exit 2
tests=$here/kernels-tests
bench=$here/kernels-bench
emulator=$here/libcuda_emulator.so
for file in "$tests" "$bench" "$emulator" "$here/VERSION"; do
  [ -r "$file" ] || fail "$file is missing: unpack the whole archive"
done
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
failed=0

# No test takes longer; a kernel that waits for ever does.
limited() {
  seconds=$1
  shift
  if command -v timeout >/dev/null 2>&1; then timeout -k 10 "$seconds" "$@"; else "$@"; fi
}

# The emulator under the names that programs look for the driver by.
mkdir "$work/emulator"
ln -s "$emulator" "$work/emulator/libcuda.so.1"
ln -s "$emulator" "$work/emulator/libcuda.so"
emulated() (
  unset ABRUZZI_TEST_GPU
  LD_LIBRARY_PATH=$work/emulator${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  CUDA_EMULATOR_LIBRARY=$emulator
  CUDA_EMULATOR_PROFILE=$profile
  export LD_LIBRARY_PATH CUDA_EMULATOR_LIBRARY CUDA_EMULATOR_PROFILE
  "$@"
)

# ---- the machine ----------------------------------------------------------------------------------------------------

sanitizer=
if [ $dry = 1 ]; then
  gpu="emulated"
  driver="the emulator; every time is modelled"
  state=
  ABRUZZI_TEST_QUICK=1
  export ABRUZZI_TEST_QUICK
  on_device() { emulated "$@"; }
else
  hint="use --dry-run to run on the emulator"
  command -v nvidia-smi >/dev/null 2>&1 || fail "no NVIDIA GPU here (there is no nvidia-smi): $hint"
  CUDA_DEVICE_ORDER=PCI_BUS_ID
  CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
  export CUDA_DEVICE_ORDER CUDA_VISIBLE_DEVICES
  first=${CUDA_VISIBLE_DEVICES%%,*}
  # A part of a GPU has no entry of its own; what it is part of has.
  case $first in MIG-*) first=0 ;; esac
  ask() { nvidia-smi -i "$first" --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
  gpu=$(ask name)
  case $gpu in '' | *[Nn]o\ devices* | *rror*) fail "nvidia-smi finds no GPU ($(nvidia-smi 2>&1 | head -n 1)): $hint" ;; esac
  capability=$(ask compute_cap)
  [ "$capability" = 9.0 ] || fail "$gpu has compute capability $capability; the kernels need 9.0 (H100, H200): $hint"
  driver=$(ask driver_version)
  [ "${driver%%.*}" -ge 580 ] 2>/dev/null || fail "driver $driver; code of CUDA 13 needs 580 or newer: $hint"
  state=$(ask clocks.sm,clocks.mem,power.limit,temperature.gpu)
  ABRUZZI_TEST_GPU=1
  export ABRUZZI_TEST_GPU
  on_device() { "$@"; }
  for candidate in compute-sanitizer "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" /usr/local/cuda/bin/compute-sanitizer; do
    if command -v "$candidate" >/dev/null 2>&1; then sanitizer=$candidate; break; fi
  done
fi
case $gpu in
  *H200*) profile=h200 ;;
  *MIG\ 1g.10gb*) profile=h100-mig-10gb ;;
  *) profile=${CUDA_EMULATOR_PROFILE:-h100-80gb} ;;
esac
slug=$(echo "$gpu" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-' | sed 's/^-*//; s/-*$//')
report=$out/$(date -u +%Y-%m-%d)-$slug.md
cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)

emulated "$tests" --list --format terse >"$work/list" 2>"$work/error" ||
  fail "the tests do not start here: $(cat "$work/error")"
sed -n 's/: test$//p' "$work/list" >"$work/all"
[ -s "$work/all" ] || fail "$tests lists no test"
if [ $dry = 1 ]; then grep -E '^(echo|norm|timing)::' "$work/all"; else cat "$work/all"; fi >"$work/chosen"
[ -s "$work/chosen" ] || fail "no test was chosen"

# ---- what is done ---------------------------------------------------------------------------------------------------

: >"$work/failures" >"$work/suites" >"$work/commands"
command_line() { echo "$*" | sed "s|$here/|./|g; s|$work/|…/|g" >>"$work/commands"; }

# suite NAME SECONDS COMMAND…: each chosen test after COMMAND, in its own process.
suite() {
  suite_name=$1
  suite_limit=$2
  shift 2
  command_line "$* TEST --exact --test-threads=1"
  passed=0
  suite_failed=0
  begun=$(date +%s)
  while read -r test <&3; do
    case $suite_name:$test in
      # A sanitizer takes time, and times are what these are about.
      compute-sanitizer*:timing::*) continue ;;
    esac
    on_device limited "$suite_limit" "$@" "$test" --exact --test-threads=1 >"$work/log" 2>&1 </dev/null
    status=$?
    if [ $status = 0 ] && grep -q '^test result: ok. 1 passed' "$work/log"; then
      passed=$((passed + 1))
    else
      suite_failed=$((suite_failed + 1))
      failed=1
      case $status in 124 | 137) why="stopped after $suite_limit s" ;; *) why="exit code $status" ;; esac
      echo "  $suite_name: $test FAILED ($why)"
      { echo; echo "### $suite_name: $test ($why)"; echo; echo '````text'; cat "$work/log"; echo '````'; } >>"$work/failures"
    fi
  done 3<"$work/chosen"
  took=$(($(date +%s) - begun))
  echo "| $suite_name | $passed | $suite_failed | $took s |" >>"$work/suites"
  echo "$suite_name: $passed passed, $suite_failed failed, $took s"
}

# benches NAME WHERE TABLE: the benches on_device or emulated.
benches() {
  name=$1
  where=$2
  table=$3
  command_line "$bench --bench    # $where"
  CRITERION_HOME=$work/criterion
  ABRUZZI_BENCH_TABLE=$table
  export CRITERION_HOME ABRUZZI_BENCH_TABLE
  if "$where" limited 3600 "$bench" --bench >"$work/log" 2>&1 </dev/null && [ -s "$table" ]; then
    echo "$name: $(wc -l <"$table") cases"
  else
    status=$?
    failed=1
    echo "$name: FAILED"
    { echo; echo "### $name (exit code $status)"; echo; echo '````text'; cat "$work/log"; echo '````'; } >>"$work/failures"
  fi
  touch "$table"
  sed -n '/: not on the emulator/p' "$work/log" >>"$work/skipped"
}

echo "$gpu, $driver"
: >"$work/skipped"
suite tests 600 "$tests"
if [ -n "$sanitizer" ]; then
  ABRUZZI_TEST_QUICK=1
  export ABRUZZI_TEST_QUICK
  for tool in memcheck racecheck initcheck synccheck; do
    suite "compute-sanitizer $tool" 900 "$sanitizer" --tool "$tool" --error-exitcode 99 "$tests"
  done
  unset ABRUZZI_TEST_QUICK
elif [ $dry = 1 ]; then
  echo "| compute-sanitizer | | | not without a GPU |" >>"$work/suites"
else
  echo "| compute-sanitizer | | | not found on PATH, in \$CUDA_HOME/bin, in /usr/local/cuda/bin |" >>"$work/suites"
  echo "compute-sanitizer: not found"
fi
: >"$work/measured"
if [ $dry = 0 ]; then benches benches on_device "$work/measured"; fi
benches "benches on the emulator" emulated "$work/modelled"

# ---- the report -----------------------------------------------------------------------------------------------------

{
  echo "# Kernels on: $gpu"
  echo
  [ $dry = 0 ] || { echo "A dry run: nothing was measured, every time below is modelled."; echo; }
  echo "| | |"
  echo "|---|---|"
  echo "| date | $(date -u '+%Y-%m-%d %H:%M') UTC |"
  echo "| GPU | $gpu |"
  echo "| driver | $driver |"
  [ -z "$state" ] || echo "| SM clock, memory clock, power limit, temperature before | $state |"
  echo "| host | ${cpu:-unknown}, $(uname -sr) |"
  [ -z "$sanitizer" ] || echo "| compute-sanitizer | $("$sanitizer" --version 2>/dev/null | sed -n 's/.*[Vv]ersion */version /p' | head -n 1) |"
  sed 's/^\([^:]*\): *\(.*\)/| \1 | \2 |/' "$here/VERSION"
  if [ $failed = 0 ]; then echo "| result | all passed |"; else echo "| result | **failed** |"; fi
  echo
  echo "## Tests"
  echo
  echo "| | passed | failed | time |"
  echo "|---|--:|--:|---|"
  cat "$work/suites"
  echo
  echo "## Benches"
  echo
  echo "Medians. Measured: by the driver's events, the second-level cache written over before each launch, against a measured"
  echo "copy or the data sheet's arithmetic. Modelled: by the emulator, profile $profile, against that profile."
  echo
  echo "| kernel | shape | measured µs | rate | of the limit | modelled µs | of its limit | measured ÷ modelled |"
  echo "|---|---|--:|--:|---|--:|---|--:|"
  awk -F '\t' '
    function line(kernel, shape, us, rate, share, model, model_share) {
      ratio = (us != "" && model > 0) ? sprintf("%.2f", us / model) : ""
      printf "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n", kernel, shape, us, rate, share, model, model_share, ratio
    }
    FILENAME == ARGV[1] { key = $1 FS $2; model[key] = $3; model_share[key] = $5; order[++n] = key; next }
    { key = $1 FS $2; seen[key] = 1; line($1, $2, $3, $4, $5, model[key], model_share[key]) }
    END {
      for (i = 1; i <= n; ++i) if (!(order[i] in seen)) {
        split(order[i], part, FS)
        line(part[1], part[2], "", "", "", model[order[i]], model_share[order[i]])
      }
    }' "$work/modelled" "$work/measured"
  if [ -s "$work/skipped" ]; then
    echo
    sed 's/^/- /' "$work/skipped"
  fi
  echo
  echo "## Failures"
  if [ -s "$work/failures" ]; then cat "$work/failures"; else echo; echo "None."; fi
  echo
  echo "## Commands"
  echo
  echo '```sh'
  cat "$work/commands"
  echo '```'
} >"$report" || exit 2
echo "report: $report"
exit $failed
