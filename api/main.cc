#include "api/cli.h"

int main(int argc, char** argv) { return holdfast::RunCli(argc, argv); }
