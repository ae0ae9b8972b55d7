"""What ships in cluster/: valid, in agreement with itself and the package, and closed to strangers."""

import ast
import copy
import json
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from ssm_metarl import cli
from ssm_metarl.config import load_config
from ssm_metarl.options import parse
from ssm_metarl.runtime.jobs import Job

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = yaml.safe_load((ROOT / "tests" / "kubernetes.yaml").read_text())
MANIFESTS = [
    document
    for name in ("rayjob.yaml", "runs-pod.yaml")
    for document in yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8"))
]
OBJECTS = {document["kind"]: document for document in MANIFESTS}


def launcher():
    return yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8"))


def launcher_problems(config):
    """By the schema that Ray's launcher itself checks."""
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(config)]


def problems(document):
    schema = {**SCHEMAS[document["kind"]], "$defs": SCHEMAS["$defs"]}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("document", MANIFESTS, ids=lambda document: document["kind"])
def test_kubernetes_manifests(document):
    assert problems(document) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backOffLimit"), 3),
        (("spec", "backoffLimit"), "3"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "on"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "cpu"), "1"),
    ],
)
def test_the_schema_would_notice(path, value):
    document = copy.deepcopy(OBJECTS["RayJob"])
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert problems(document)


def test_the_job_on_kubernetes_resumes_on_its_volume():
    """A token, a volume for what it saves, retries, and the one entry point, which starts with what is mounted."""
    spec = OBJECTS["RayJob"]["spec"]
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    python, m, package, command, *words = shlex.split(spec["entrypoint"])
    assert (python, m, package, command) == ("python", "-m", "ssm_metarl", "train")
    arguments, overrides = parse(cli.Train, words, "")
    assert arguments.resume == "auto"
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert overrides["run.dir"] == mounts["runs"] == spec["metadata"]["run_dir"]
    assert overrides["run.name"] == spec["metadata"]["run_name"]
    claim = OBJECTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim
    assert OBJECTS["Pod"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    config_map = OBJECTS["ConfigMap"]
    assert volumes["config"]["configMap"]["name"] == config_map["metadata"]["name"]
    assert str(arguments.config) == f"{mounts['config']}/train.yaml"
    assert yaml.safe_load(config_map["data"]["train.yaml"]) == yaml.safe_load((CLUSTER / "train.yaml").read_text())
    # What KubeRay demands beyond its schema.
    assert spec["submissionMode"] == "SidecarMode" and head.get("restartPolicy", "Never") == "Never"


def test_the_configuration_can_be_sent():
    job = Job.prepare(CLUSTER / "train.yaml", {"run.name": "first", "run.dir": "/runs"}, ROOT)
    assert job.config.workers.num_workers == "auto"
    assert Path("ssm_metarl/cli.py") in job.files, "a clone brings its own code"
    assert not [path for path in job.files if path.parts[0] in (".git", ".venv", "runs")]


def test_launcher():
    config = launcher()
    assert launcher_problems(config) == []
    assert launcher_problems({**config, "idle_minutes": 3}), "the schema would notice"
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_launcher_for_machines_of_your_own():
    """As the comment at its top says."""
    text = (CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8")
    config = launcher()
    config |= yaml.safe_load(re.search(r"^#   (provider: .*)$", text, re.MULTILINE)[1])
    for key in ("max_workers", "available_node_types", "head_node_type"):
        del config[key]
    assert config["provider"]["type"] == "local"
    assert launcher_problems(config) == []


def test_one_image_of_one_ray_within_our_bounds():
    images = {
        container["image"] for document in (OBJECTS["RayJob"], OBJECTS["Pod"]) for container in _containers(document)
    }
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert images == {launcher()["docker"]["image"]} == set(re.findall(r"docker build .* -t (\S+) ", dockerfile))
    assert next(iter(images)) in (CLUSTER / "README.md").read_text(encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert next(iter(images)).endswith(re.search(r'^version = "(.*)"', pyproject, re.MULTILINE)[1])
    version = re.search(r"^FROM rayproject/ray:([\d.]+)-py311-cpu$", dockerfile, re.MULTILINE)[1]
    assert version == OBJECTS["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert f'"ray=={version}"' in dockerfile
    for pinned in (f"ray=={version}", re.search(r"torch==([\d.]+)", dockerfile)[0]):
        name, _, number = pinned.partition("==")
        bounds = Requirement(re.search(rf'^  "({name}\b.*)",$', pyproject, re.MULTILINE)[1]).specifier
        assert bounds.contains(number), (pinned, bounds)


def _containers(node):
    if isinstance(node, dict):
        yield from node.get("containers", ())
        for value in node.values():
            yield from _containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from _containers(value)


def test_image_runs_as_a_user_without_secrets():
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    instructions = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z]", line)]
    assert set(instructions) == {"FROM", "ARG", "RUN", "COPY", "ENV"}, "no USER: the base image's stays"
    assert "AUTH" not in text
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    copied = {word for line in text.splitlines() if line.startswith("COPY") for word in line.split()[2:-1]}
    assert copied == {line[1:] for line in ignored if line.startswith("!")}


def shipped():
    """Every text that leaves the repository, but the tests."""
    folders = ("ssm_metarl", "cluster", "docs", "benchmarks", "tune_configs", ".")
    for folder in folders:
        for path in (ROOT / folder).glob("*" if folder == "." else "**/*"):
            if path.is_file() and path.suffix in {".py", ".yaml", ".md", ".sh", ".toml", ".json", ""}:
                yield path, path.read_text(encoding="utf-8", errors="ignore")


def test_nothing_listens_on_every_interface():
    anywhere = re.compile(r"0\.0\.0\.0|--(dashboard-)?host[ =]+['\"]?(::|\*)")
    assert [str(path) for path, text in shipped() if anywhere.search(text)] == []


def test_every_cluster_that_is_started_demands_a_token():
    launched = launcher()
    starts = [
        line
        for line in [*launched["head_start_ray_commands"], *launched["worker_start_ray_commands"]]
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ray start" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    script = (CLUSTER / "local_cluster.sh").read_text(encoding="utf-8")
    assert script.index("export PATH RAY_AUTH_MODE=token") < script.index('start | stop) "$1"')
    assert script.index("umask 077") < script.index('$state/auth_token"\n  trap')
    assert "ray stop" not in script, "it would end every Ray on the machine"
    assert not [str(path) for path, text in shipped() if re.search(r"RAY_AUTH_MODE[=: ]+[\"']?disabled", text)]


def test_nothing_that_is_read_is_unpickled():
    wrong = []
    # Tasks are pickles by Meta-World's interface: made by the package and taken apart in the same process.
    of_meta_world = {"metaworld.py", "metaworld_family.py"}
    for path in (ROOT / "ssm_metarl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", ()) if isinstance(node, ast.Import)]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if names == ["pickle"] and path.name in of_meta_world:
                continue
            if {name.partition(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}:
                wrong.append(f"{path.name}:{node.lineno} imports {names}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                call = ast.unparse(node.func)
                if call == "torch.load" and arguments.get("weights_only") != "True":
                    wrong.append(f"{path.name}:{node.lineno} {call}")
                if arguments.get("allow_pickle", "False") != "False":
                    wrong.append(f"{path.name}:{node.lineno} {call} allows pickle")
                if call in ("yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"):
                    wrong.append(f"{path.name}:{node.lineno} {call}")
    assert wrong == []


def test_scripts_are_scripts():
    script = CLUSTER / "local_cluster.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    usage = subprocess.run([script, "--help"], check=True, timeout=30, capture_output=True, text=True).stdout
    assert "start | env | kill N | stop" in usage
    assert subprocess.run([script, "begin"], timeout=30, capture_output=True, check=False).returncode == 2


def test_readme_says_what_there_is():
    """Its commands can be parsed, its files and messages exist."""
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    commands = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith("ssm-metarl")]
    assert len(commands) >= 6
    for _, command, *words in commands:
        arguments, overrides = parse(cli.COMMANDS[command][0], words, "")
        load_config(ROOT / arguments.config if getattr(arguments, "config", None) else None, overrides)
    files = set(re.findall(r"`([\w.-]+\.(?:sh|py|yaml))`", text)) | {"Dockerfile"}
    there = {path.name for path in CLUSTER.iterdir() if path.is_file()}
    assert files == there - {"README.md", "Dockerfile.dockerignore"}
    sources = re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text() for path in (ROOT / "ssm_metarl").rglob("*.py")))
    table = text[text.index("## When something is wrong") :]
    for message in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE):
        for words in re.findall(r"`(.*?)`", message):
            pattern = re.escape(words).replace("first", r"\S+").replace("/runs", r"\S+").replace(r"10\ s", ".* s")
            assert re.search(pattern, sources), words
