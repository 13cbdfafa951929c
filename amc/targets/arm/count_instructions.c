/*
 * QEMU plugin: how many instructions the emulated program runs between two marks.
 *
 * Two system calls without effect are its signs to the plugin, which writes lines to QEMU's log:
 * closing a file descriptor that cannot be open, SECTION + number: "section NUMBER";
 * giving up the processor (sched_yield): "mark COUNT", the instructions of this process so far. Of all system
 * calls this one needs the fewest instructions of a Python program, and always the same.
 *
 * Debian ships no qemu-plugin.h, so the few functions of version 1 of QEMU's plugin interface that are used
 * here are declared by hand (QEMU documentation, "QEMU TCG Plugins"; the interface is stable per version).
 */
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define SYS_CLOSE_ON_ARM64 57
#define SYS_SCHED_YIELD_ON_ARM64 124
#define SECTION 0x7ac00000u
#define SECTIONS 0x10000u

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    _Bool system_emulation;
    union { struct { int smp_vcpus, max_vcpus; } system; };
} qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

typedef void (*block_callback)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*system_call_callback)(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1,
                                     uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6,
                                     uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, block_callback callback);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, system_call_callback callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, enum qemu_plugin_op op,
                                              void *counter, uint64_t amount);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_outs(const char *text);

EXPORT int qemu_plugin_version = 1;

static uint64_t instructions;

/* One addition a block, compiled into the block: counting costs a few per cent of the emulation's speed. */
static void count_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &instructions,
                                             qemu_plugin_tb_n_insns(block));
}

/* By hand, so that the plugin needs no C library and loads beside any version of it. */
static char *decimal(char *end, uint64_t number)
{
    do {
        *--end = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    return end;
}

static void write_line(const char *word, size_t length, uint64_t number)
{
    char line[64];
    char *text = line + sizeof line - 1;
    *text = '\0';
    *--text = '\n';
    text = decimal(text, number);
    *--text = ' ';
    while (length)
        *--text = word[--length];
    qemu_plugin_outs(text);
}

static void on_system_call(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2,
                           uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    uint64_t section = (a1 & 0xffffffffu) - SECTION;
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == SYS_SCHED_YIELD_ON_ARM64)
        write_line("mark", sizeof "mark" - 1, instructions);
    else if (number == SYS_CLOSE_ON_ARM64 && section < SECTIONS)
        write_line("section", sizeof "section" - 1, section);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
