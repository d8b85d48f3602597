# Drain and stop producer, workers and, where it runs, the sandbox. Exit code 0 when nothing is left running.
$ErrorActionPreference = 'Stop'
Set-Location (Join-Path $PSScriptRoot '..')
$python = '.venv\Scripts\python.exe'
if (-not (Test-Path $python)) {
    Write-Output 'nothing was ever started here'
    exit 0
}
& $python -m email_ingestion stop @args
exit $LASTEXITCODE
