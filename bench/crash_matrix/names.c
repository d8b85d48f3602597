/* A resolver that can fail: preloaded into a process, no name is found while the file NAMES_AWAY exists, or each is found
 * after as many seconds as it says. Addresses are no names and need no resolver. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int getaddrinfo(const char *restrict node, const char *restrict service, const struct addrinfo *restrict hints,
                struct addrinfo **restrict found)
{
    static int (*resolve)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    unsigned char address[sizeof(struct in6_addr)];
    const char *away = getenv("NAMES_AWAY");
    unsigned seconds = 0;
    FILE *file;

    if (!resolve)
        resolve = dlsym(RTLD_NEXT, "getaddrinfo");
    if (node && away && inet_pton(AF_INET, node, address) != 1 && inet_pton(AF_INET6, node, address) != 1 &&
        (file = fopen(away, "r"))) {
        int said = fscanf(file, "%u", &seconds);
        fclose(file);
        if (said != 1)
            return EAI_AGAIN;
        sleep(seconds);
    }
    return resolve(node, service, hints, found);
}
