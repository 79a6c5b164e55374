"""A secret in clear text is refused, wherever it stands and however it is written; what is none passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, StaggerError, WriteJsonl
from stagger.pipeline import Document
from stagger.spec.changes import Changes, changed_spec
from stagger.spec.load import load_file
from stagger.spec.models import RunSpec
from stagger.storage.storage import Storage

SECRET = "S3CR3T"

#: Storage options with a secret in clear text, in YAML.
CLEAR = (
    "{s3: {secret: S3CR3T}}",
    "{s3: {client_kwargs: {aws_secret_access_key: S3CR3T}}}",
    '{s3: {secret: "${HOME}S3CR3T"}}',
    '{s3: {secret: "S3CR3T${HOME}"}}',
    '{s3: {secret: "$${S3CR3T}"}}',
    '{s3: {secret: "${HOME:-S3CR3T}"}}',
    '{s3: {secret: "${S3CR3T"}}',
    "{s3: {secret: [S3CR3T]}}",
    "{s3: {secret: {value: S3CR3T}}}",
    "{s3: {secretAccessKey: S3CR3T}}",
    "{s3: {SSECustomerKey: S3CR3T}}",
    "{s3: {profiles: [{secret: S3CR3T}]}}",
    "{s3: {token: S3CR3T}}",
    '{s3: {endpoint_url: "https://h/x?sig=S3CR3T"}}',
    '{s3: {endpoint_url: "https://h/x?a=1&X-Amz-Signature=S3CR3T"}}',
    '{s3: {endpoint_url: "https://S3CR3T@h/x"}}',
    '{s3: {config_kwargs: {proxies: {https: "http://u:S3CR3T@proxy:3128"}}}}',
    '{s3: {config_kwargs: {proxies: {https: "u:S3CR3T@proxy:3128"}}}}',
    '{s3: {"https://u:S3CR3T@h": 1}}',
    "{http: {api_key: S3CR3T}}",
    "{http: {apikey: S3CR3T}}",
    '{http: {headers: {Authorization: "Bearer S3CR3T"}}}',
    '{https: {client_kwargs: {headers: {Authorization: "Basic S3CR3T"}}}}',
    "{http: {headers: {X-Mine: S3CR3T}}}",
    "{http: {headers: [[Authorization, S3CR3T]]}}",
    '{http: {headers: ["X-Api-Key: S3CR3T"]}}',
    "{http: {cookies: {session: S3CR3T}}}",
    "{http: {auth: [me, S3CR3T]}}",
    "{ftp: {passwd: S3CR3T}}",
    "{ftp: {password: S3CR3T}}",
    "{ssh: {pass: S3CR3T}}",
    "{ssh: {passphrase: S3CR3T}}",
    "{smb: {pwd: S3CR3T}}",
    "{az: {credential: S3CR3T}}",
    "{az: {account_key: S3CR3T}}",
    '{az: {sas_token: "sv=2024&sig=S3CR3T"}}',
    '{az: {connection_string: "AccountName=x;AccountKey=S3CR3T"}}',
    "{gcs: {private_key: S3CR3T}}",
    "{gcs: {token: {type: service_account, private_key: S3CR3T}}}",
    '{db: {dsn: "postgresql://u:S3CR3T@db/x"}}',
    '{x: {arguments: "--password S3CR3T"}}',
    "{x: {environment: [TOKEN=S3CR3T]}}",
)

#: Secrets that only their form gives away.
FORMS = (
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEg==",
    "9f86d081884c7d659a2feaa0c55ad015",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "-----BEGIN RSA PRIVATE KEY-----\nabc",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
)

#: Storage options and parameters of steps without a secret in clear text.
FINE: tuple[dict[str, Any], ...] = (
    {
        "key": "AKIAIOSFODNN7EXAMPLE",
        "secret": "${HOME}",
        "anon": False,
        "profile": "My-Team-Profile-2024",
        "token": None,
    },
    {"endpoint_url": "https://9f86d081884c7d659a2feaa0c55ad015.r2.cloudflarestorage.com", "region": "eu-central-1"},
    {"endpoint_url": "https://${HOME}:${HOME}@h/x?sig=${HOME}", "bucket": "Data-Lake-Raw-123456789012-Eu-West-1"},
    {"role_arn": "arn:aws:iam::123456789012:role/Reader2024", "kms": "1234abcd-12ab-34cd-56ef-1234567890ab"},
    {"headers": {"Authorization": "Bearer ${HOME}", "User-Agent": "crawler/1.0", "Accept": "application/json"}},
    {"token": "google_default", "use_token": True, "project": "my-project-123456"},
    {"connection_string": "AccountName=x;AccountKey=${HOME};EndpointSuffix=core.windows.net"},
    {"path": "abfss://data@account.dfs.core.windows.net/x", "login": "sftp://me@host/x", "aws_access_key_id": "AKIA1"},
    {"revision": "e73636d4f797dec63c3081bb6ed5c7b0bb3f2089", "model": "TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ"},
    {"max_tokens": 512, "eos_token": "</s>", "tokenizer": "meta-llama/Llama-3.1-8B", "text_key": "content"},
    {"headers": ["id", "text"], "pattern": r"token=(\w+)", "prompt": "The password is wrong. Basic English, please."},
    {"secret_name": "prod/reader", "password_file": "/run/secrets/pw", "token_uri": "https://h/token"},
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls.py").write_text("def call(data, rank, world_size, **options):\n    yield from ()\n")
    return tmp_path


def load(options: str = "{}", params: str = "{}", *assignments: str, more: str = "") -> RunSpec:
    Path("p.yaml").write_text(
        f"name: x\nrun_dir: run\nstorage_options: {options}\npipeline:\n- calls:call: {params}\n{more}\n"
    )
    return load_file("p.yaml", Changes(assignments))


def refused(*arguments: str, more: str = "") -> str:
    with pytest.raises(StaggerError, match="a secret in clear text would be stored") as raised:
        load(*arguments, more=more)
    said = str(raised.value)
    assert SECRET not in said
    assert "${NAME}" in said
    return said


@pytest.mark.parametrize("options", CLEAR)
def test_a_secret_in_clear_text_is_refused_in_storage_options_and_in_steps(options: str) -> None:
    assert refused(options).startswith("p.yaml:3: storage_options.")
    assert refused("{}", options).startswith("p.yaml:5: pipeline[0].calls:call.")
    assert refused("{}", "{}", f"storage_options={options}").startswith("--set storage_options: storage_options.")
    stages = f"stages: [{{name: a, pipeline: [{{use: 'calls:call', params: {options}}}]}}]"
    Path("stages.yaml").write_text(f"name: x\nrun_dir: run\n{stages}\n")
    with pytest.raises(StaggerError, match=r"stages\[0\]\.pipeline\[0\]\.params\..*a secret in clear text"):
        load_file("stages.yaml")


@pytest.mark.parametrize("secret", FORMS)
def test_a_value_that_looks_like_a_key_is_refused_under_any_name(secret: str) -> None:
    with pytest.raises(StaggerError, match=r"storage_options\.x: a secret in clear text") as raised:
        LocalExecutor([print], run_dir="run", storage_options={"s3": {}, "x": secret})  # type: ignore[dict-item]
    assert secret not in str(raised.value)


@pytest.mark.parametrize("options", FINE)
def test_names_paths_and_references_are_no_secrets(options: dict[str, Any]) -> None:
    LocalExecutor([print], run_dir="run", storage_options={"s3": options})


def test_the_path_of_a_key_file_is_no_secret(folder: Path) -> None:
    (folder / "key.json").write_text("{}")
    load(f"{{gcs: {{token: {folder}/key.json}}}}")


def test_a_number_is_a_password_and_a_switch_is_none() -> None:
    assert "storage_options.ftp.password" in refused("{ftp: {password: 123456789}}")
    load("{ftp: {password: null, token: true}}")


@pytest.mark.parametrize(
    "more",
    [
        "executor: {type: slurm, env: {setup: ['export HF_TOKEN=S3CR3T']}}",
        "executor: {type: slurm, env: {setup: ['export HF_TOKEN=${IN_CLEAR}']}}",
        "executor: {type: slurm, env: {container: 'docker://u:S3CR3T@h/image'}}",
        "executor: {type: slurm, sbatch: {export: 'ALL,HF_TOKEN=S3CR3T'}}",
    ],
)
def test_keys_that_are_expanded_at_launch_hold_no_secret(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IN_CLEAR", SECRET)
    assert "executor" in refused(more=more)
    load(more=more.replace("S3CR3T", "$${NAME}").replace("${IN_CLEAR}", "$${NAME}").replace("u:$", "$"))


def test_the_address_of_a_run_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", f"https://u:{SECRET}@h/run")
    assert refused("{}", "{}", "run_dir=${PLACE}").startswith("--set run_dir: ")


def test_a_retry_stores_no_secret_either() -> None:
    spec = load(more="executor: {type: slurm}")
    with pytest.raises(StaggerError, match="a secret in clear text") as raised:
        changed_spec(spec, ["executor.env.setup=['export TOKEN=S3CR3T']"], None)
    assert SECRET not in str(raised.value)


def test_a_value_that_json_cannot_hold_is_refused() -> None:
    for value in (b"hello", {"a", "b"}):
        with pytest.raises(StaggerError, match=r"storage_options\.s3\.x: JSON cannot hold this value"):
            LocalExecutor([WriteJsonl("out")], run_dir="run", storage_options={"s3": {"x": value}})


class Call:
    def __init__(self, api_key: str) -> None:
        self.api_key = api_key

    def __call__(self, data: Any, rank: int, world_size: int) -> list[Document]:
        return []


def test_objects_hold_no_secret() -> None:
    with pytest.raises(
        StaggerError, match=r"Step 1 \(.*:Call\): api_key: a secret in clear text.*os\.environ"
    ) as raised:
        LocalExecutor([Call(SECRET)], run_dir="run")
    assert SECRET not in str(raised.value)
    with pytest.raises(StaggerError, match=r"path: a secret in clear text"):
        LocalExecutor([WriteJsonl(f"https://u:{SECRET}@h/x")], run_dir="run")
    with pytest.raises(StaggerError, match="NO_SUCH is not set"):
        LocalExecutor([print], run_dir="run", storage_options={"s3": {"secret": "${NO_SUCH}"}})


def test_references_stay_references_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    more = "blocks: {total: 4, servers: 1, host_options: {api_key: '${TOKEN}'}}"
    Path("blocks.yaml").write_text(f"name: x\nrun_dir: run\n{more}\n")
    for spec in (
        load("{s3: {secret: '${TOKEN}'}}", "{api_key: '${TOKEN}', x: ['${TOKEN}']}"),
        load_file("blocks.yaml"),
    ):
        assert SECRET not in spec.model_dump_json()
        assert "${TOKEN}" in spec.model_dump_json()


@pytest.mark.parametrize("wrong", ["${NO_SUCH}", "${NO_SUCH:-x}", "${}"])
def test_a_variable_that_is_not_set_is_named_with_its_place(wrong: str) -> None:
    with pytest.raises(StaggerError, match=r"^p\.yaml:5: pipeline\[0\]\.calls:call\.x\[0\]: .*variable"):
        load("{}", f"{{x: ['{wrong}']}}")


def test_a_task_names_the_variable_that_it_misses() -> None:
    with pytest.raises(StaggerError, match=r"^storage_options\.memory\.x: The environment variable NO_SUCH is not set"):
        Storage({"memory": {"x": "${NO_SUCH}"}}).read("memory://a")
