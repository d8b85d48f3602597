# Start producer and workers, or with --sandbox everything they need as well. Makes .venv on the first run.
$ErrorActionPreference = 'Stop'
Set-Location (Join-Path $PSScriptRoot '..')
$python = '.venv\Scripts\python.exe'
$stamp = '.venv\.installed'
$wanted = (Get-FileHash requirements.lock).Hash + (Get-FileHash pyproject.toml).Hash
if (-not (Test-Path $stamp) -or (Get-Content $stamp -Raw).Trim() -ne $wanted) {
    Write-Output 'installing the locked dependencies into .venv (once)'
    if (Get-Command py -ErrorAction SilentlyContinue) { py -3 -m venv .venv } else { python -m venv .venv }
    & $python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
    & $python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
    Set-Content $stamp $wanted
}
& $python -m email_ingestion start @args
exit $LASTEXITCODE
